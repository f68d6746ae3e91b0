#include "sluice/pruners/weight/sparse_gpt/sparse_gpt.h"

SLUICE_BEGIN_NAMESPACE
template class WeightPrunerOf<weight::SparseGpt>;
SLUICE_END_NAMESPACE
