#include "sluice/pruners/weight/magnitude/magnitude.h"

SLUICE_BEGIN_NAMESPACE
template class WeightPrunerOf<weight::Magnitude>;
SLUICE_END_NAMESPACE
