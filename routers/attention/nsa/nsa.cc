#include "sluice/routers/attention/nsa/nsa.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Nsa>;
SLUICE_END_NAMESPACE
