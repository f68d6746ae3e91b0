#include "sluice/routers/attention/infinite_hip/infinite_hip.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::InfiniteHip>;
SLUICE_END_NAMESPACE
