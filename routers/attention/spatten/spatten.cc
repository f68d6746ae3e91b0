#include "sluice/routers/attention/spatten/spatten.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Spatten>;
SLUICE_END_NAMESPACE
