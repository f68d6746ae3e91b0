/* ABI 2.0 as it was frozen. */
#include "frozen/2_0/sluice_abi.h"
#define SLUICE_LAYOUT layout_2_0
#include "layout.h"
