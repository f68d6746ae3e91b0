#include "sluice/routers/attention/mean_pool/mean_pool.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::MeanPool>;
SLUICE_END_NAMESPACE
