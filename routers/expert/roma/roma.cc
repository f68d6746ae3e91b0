#include "sluice/routers/expert/roma/roma.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<expert::Roma>;
SLUICE_END_NAMESPACE
