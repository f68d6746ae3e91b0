#include "sluice/routers/attention/dhsa/dhsa.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Dhsa>;
SLUICE_END_NAMESPACE
