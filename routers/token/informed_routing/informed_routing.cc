#include "sluice/routers/token/informed_routing/informed_routing.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<token::InformedRouting>;
SLUICE_END_NAMESPACE
