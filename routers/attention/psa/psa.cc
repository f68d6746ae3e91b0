#include "sluice/routers/attention/psa/psa.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Psa>;
SLUICE_END_NAMESPACE
