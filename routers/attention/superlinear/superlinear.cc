#include "sluice/routers/attention/superlinear/superlinear.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Superlinear>;
SLUICE_END_NAMESPACE
