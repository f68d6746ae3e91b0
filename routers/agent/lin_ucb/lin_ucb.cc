#include "sluice/routers/agent/lin_ucb/lin_ucb.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<agent::LinUcb>;
SLUICE_END_NAMESPACE
