#include "sluice/routers/adapter/polytropon/polytropon.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<adapter::Polytropon>;
SLUICE_END_NAMESPACE
