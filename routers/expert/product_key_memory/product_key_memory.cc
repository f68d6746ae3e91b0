#include "sluice/routers/expert/product_key_memory/product_key_memory.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<expert::ProductKeyMemory>;
SLUICE_END_NAMESPACE
