#include "sluice/pruners/head/shrp/shrp.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<Shrp>;
SLUICE_END_NAMESPACE
