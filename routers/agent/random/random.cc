#include "sluice/routers/agent/random/random.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<agent::Random>;
SLUICE_END_NAMESPACE
