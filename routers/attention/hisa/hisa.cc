#include "sluice/routers/attention/hisa/hisa.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Hisa>;
SLUICE_END_NAMESPACE
