#include "sluice/routers/expert/noisy_top_k/noisy_top_k.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<expert::NoisyTopK>;
SLUICE_END_NAMESPACE
