#include "sluice/routers/attention/moa/moa.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Moa>;
SLUICE_END_NAMESPACE
