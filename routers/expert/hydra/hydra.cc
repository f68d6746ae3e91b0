#include "sluice/routers/expert/hydra/hydra.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<expert::Hydra>;
SLUICE_END_NAMESPACE
