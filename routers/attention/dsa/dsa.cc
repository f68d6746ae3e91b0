#include "sluice/routers/attention/dsa/dsa.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Dsa>;
SLUICE_END_NAMESPACE
