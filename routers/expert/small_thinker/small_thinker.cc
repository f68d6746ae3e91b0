#include "sluice/routers/expert/small_thinker/small_thinker.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<expert::SmallThinker>;
SLUICE_END_NAMESPACE
