#include "sluice/routers/agent/weighted/weighted.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<agent::Weighted>;
SLUICE_END_NAMESPACE
