#include "sluice/routers/agent/cost_threshold/cost_threshold.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<CostThreshold>;
SLUICE_END_NAMESPACE
