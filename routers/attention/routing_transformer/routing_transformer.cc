#include "sluice/routers/attention/routing_transformer/routing_transformer.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::RoutingTransformer>;
SLUICE_END_NAMESPACE
