#include "sluice/routers/expert/spt/spt.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<expert::Spt>;
SLUICE_END_NAMESPACE
