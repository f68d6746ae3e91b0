#include "sluice/routers/attention/s2o/s2o.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::S2o>;
SLUICE_END_NAMESPACE
