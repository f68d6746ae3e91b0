#include "sluice/routers/agent/mas_cascade/mas_cascade.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<agent::MasCascade>;
SLUICE_END_NAMESPACE
