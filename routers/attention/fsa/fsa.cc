#include "sluice/routers/attention/fsa/fsa.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Fsa>;
SLUICE_END_NAMESPACE
