#include "sluice/routers/agent/thompson/thompson.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<agent::Thompson>;
SLUICE_END_NAMESPACE
