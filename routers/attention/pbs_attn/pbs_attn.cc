#include "sluice/routers/attention/pbs_attn/pbs_attn.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::PbsAttn>;
SLUICE_END_NAMESPACE
