#include "sluice/routers/attention/seer_attention_r/seer_attention_r.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::SeerAttentionR>;
SLUICE_END_NAMESPACE
