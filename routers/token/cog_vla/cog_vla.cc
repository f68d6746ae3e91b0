#include "sluice/routers/token/cog_vla/cog_vla.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<token::CogVla>;
SLUICE_END_NAMESPACE
