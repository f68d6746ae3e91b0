#include "sluice/pruners/token/random/random.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<token::RandomTokens>;
SLUICE_END_NAMESPACE
