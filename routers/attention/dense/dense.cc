#include "sluice/routers/attention/dense/dense.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<Dense>;
SLUICE_END_NAMESPACE
