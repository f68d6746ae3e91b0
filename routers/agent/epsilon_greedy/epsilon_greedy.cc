#include "sluice/routers/agent/epsilon_greedy/epsilon_greedy.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<EpsilonGreedy>;
SLUICE_END_NAMESPACE
