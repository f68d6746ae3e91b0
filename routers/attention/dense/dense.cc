#include "sluice/routers/attention/dense/dense.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Dense>;
SLUICE_END_NAMESPACE
