#include "sluice/routers/agent/best_single/best_single.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<agent::BestSingle>;
SLUICE_END_NAMESPACE
