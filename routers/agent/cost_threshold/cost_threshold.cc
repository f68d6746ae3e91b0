#include "sluice/routers/agent/cost_threshold/cost_threshold.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<agent::CostThreshold>;
SLUICE_END_NAMESPACE
