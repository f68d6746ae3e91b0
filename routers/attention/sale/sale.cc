#include "sluice/routers/attention/sale/sale.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<attention::Sale>;
SLUICE_END_NAMESPACE
