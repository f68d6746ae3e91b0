#include "sluice/routers/attention/biformer/biformer.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::BiFormer>;
SLUICE_END_NAMESPACE
