/* The same records in today's header. */
#include "sluice/api/abi/sluice_abi.h"
#define SLUICE_LAYOUT layout_today
#include "layout.h"
