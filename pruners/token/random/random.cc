#include "sluice/pruners/token/random/random.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<RandomTokens>;
SLUICE_END_NAMESPACE
