#include "sluice/routers/agent/round_robin/round_robin.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<agent::RoundRobin>;
SLUICE_END_NAMESPACE
