#include "sluice/routers/expert/expert_choice/expert_choice.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<expert::ExpertChoice>;
SLUICE_END_NAMESPACE
