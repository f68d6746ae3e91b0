#include "sluice/routers/agent/random/random.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<Random>;
SLUICE_END_NAMESPACE
