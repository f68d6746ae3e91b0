#include "sluice/routers/agent/knn/knn.h"

SLUICE_BEGIN_NAMESPACE
template class AgentRouterOf<agent::Knn>;
SLUICE_END_NAMESPACE
