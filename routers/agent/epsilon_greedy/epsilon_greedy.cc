#include "sluice/routers/agent/epsilon_greedy/epsilon_greedy.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<agent::EpsilonGreedy>;
SLUICE_END_NAMESPACE
