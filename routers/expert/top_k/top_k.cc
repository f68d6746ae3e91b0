#include "sluice/routers/expert/top_k/top_k.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<expert::TopK>;
SLUICE_END_NAMESPACE
