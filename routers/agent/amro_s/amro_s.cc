#include "sluice/routers/agent/amro_s/amro_s.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<agent::AmroS>;
SLUICE_END_NAMESPACE
