#include "sluice/routers/attention/seer_attention/seer_attention.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::SeerAttention>;
SLUICE_END_NAMESPACE
