/* The header alone, as strict C11. */
#include "sluice/api/abi/sluice_abi.h"
int sluice_abi_c11(void);
int sluice_abi_c11(void) { return (int)sizeof(sluice_plugin_v1); }
