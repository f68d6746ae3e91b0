#include "sluice/pruners/weight/wanda/wanda.h"

SLUICE_BEGIN_NAMESPACE
template class WeightPrunerOf<weight::Wanda>;
SLUICE_END_NAMESPACE
