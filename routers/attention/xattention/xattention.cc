#include "sluice/routers/attention/xattention/xattention.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::XAttention>;
SLUICE_END_NAMESPACE
