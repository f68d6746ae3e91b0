#include "sluice/pruners/weight/dsnot/dsnot.h"

SLUICE_BEGIN_NAMESPACE
template class WeightPrunerOf<weight::Dsnot>;
SLUICE_END_NAMESPACE
