#include "sluice/routers/attention/minference/minference.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::MInference>;
SLUICE_END_NAMESPACE
