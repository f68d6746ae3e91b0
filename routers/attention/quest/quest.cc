#include "sluice/routers/attention/quest/quest.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Quest>;
SLUICE_END_NAMESPACE
