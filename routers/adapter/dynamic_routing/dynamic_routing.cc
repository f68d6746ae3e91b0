#include "sluice/routers/adapter/dynamic_routing/dynamic_routing.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<adapter::DynamicRouting>;
SLUICE_END_NAMESPACE
