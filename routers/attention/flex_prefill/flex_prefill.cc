#include "sluice/routers/attention/flex_prefill/flex_prefill.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::FlexPrefill>;
SLUICE_END_NAMESPACE
