#include "sluice/routers/layer/flux_attention/flux_attention.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<layer::FluxAttention>;
SLUICE_END_NAMESPACE
