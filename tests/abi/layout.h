/* A header's records as data. Define SLUICE_LAYOUT and include the header before this file; the
 * list of records is that of ABI 2.0, whichever header they are taken from. */
#include <stddef.h>

#include "layout_row.h"

#define RECORD(r) {#r, "", 0, sizeof(r), 0},
#define FIELD(r, f) {#r, #f, offsetof(r, f), sizeof(((r*)0)->f), 0},
#define VALUE(v) {#v, "", (size_t)(v), 0, 0},
#define TEXT(t) {#t, "", 0, sizeof(t), t},
const struct layout_row SLUICE_LAYOUT[] = {
#include "frozen/2_0/layout.inc"
    {0, 0, 0, 0, 0},
};
