#include "sluice/routers/attention/hip/hip.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Hip>;
SLUICE_END_NAMESPACE
