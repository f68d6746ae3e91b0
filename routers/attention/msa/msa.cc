#include "sluice/routers/attention/msa/msa.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Msa>;
SLUICE_END_NAMESPACE
