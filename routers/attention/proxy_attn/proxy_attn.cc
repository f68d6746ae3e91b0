#include "sluice/routers/attention/proxy_attn/proxy_attn.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::ProxyAttn>;
SLUICE_END_NAMESPACE
