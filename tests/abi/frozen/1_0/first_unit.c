/* A plug-in in C alone, and the source of first_unit.so beside it, which was built when ABI 1.0 was made and stays as
 * it is: gcc -std=c11 -O2 -shared -fPIC -s -I<include> -Wl,--version-script=plugins/plugin.map first_unit.c -o
 * first_unit.so Every item goes to unit 0 with weight 1. */
#include <stdlib.h>
#include <string.h>

#include "sluice/api/abi/sluice_abi.h"

__attribute__((section(SLUICE_MANIFEST_SECTION), used)) const char manifest[] =
    "sluice-plugin 1\nname=first_unit\nversion=1.0.0\nabi=1.0\nmin_host_minor=0\n";

static sluice_code fail(sluice_error* e, sluice_code code, const char* text) {
  if (e != NULL && e->capacity > 0) {
    strncpy(e->text, text, e->capacity - 1);
    e->text[e->capacity - 1] = 0;
  }
  return code;
}
static sluice_code create(const sluice_kv* kv, size_t n, const sluice_weights* w, void** out, sluice_error* e) {
  (void)kv, (void)w;
  if (n > 0) return fail(e, 3, "first_unit has no settings");
  *out = malloc(1);
  return *out != NULL ? 0 : fail(e, 8, "out of memory");
}
static sluice_code make_plan(const void* r, const sluice_route_shape* s, void** out, sluice_route_info* info,
                             sluice_error* e) {
  (void)r;
  if (s->units < 1) return fail(e, 3, "first_unit wants a unit");
  *out = malloc(1);
  info->workspace_bytes = 0, info->max_entries = s->items;
  return *out != NULL ? 0 : fail(e, 8, "out of memory");
}
static sluice_code run(const void* r, const void* p, const sluice_route_inputs* in, const sluice_run_context* c,
                       sluice_assignment* a, sluice_error* e) {
  (void)r, (void)p, (void)c;
  const int64_t items = in->scores.data != NULL ? in->scores.rows : in->features.rows;
  if (a->row_ptr_size < items + 1 || a->unit_size < items || a->weight_size < items)
    return fail(e, 3, "first_unit: the assignment is too small");
  for (int64_t i = 0; i < items; ++i) a->row_ptr[i] = (int32_t)i, a->unit[i] = 0, a->weight[i] = 1;
  a->row_ptr[items] = (int32_t)items;
  a->items = items, a->units = in->scores.data != NULL ? in->scores.cols : 1, a->num_dropped = 0;
  return 0;
}
static const sluice_router_v1 router = {
    sizeof(sluice_router_v1), "first_unit", 5, 0, "", create, free, make_plan, free, run};
static const sluice_router_v1* const routers[] = {&router};
static const sluice_plugin_v1 plugin = {
    sizeof(sluice_plugin_v1), SLUICE_PLUGIN_MAGIC, 1, 0, 0, "first_unit", "1.0.0", 1, routers, 0, NULL};
const sluice_plugin_v1* sluice_plugin_entry_v1(uint32_t major, uint32_t minor) {
  (void)minor;
  return major == 1 ? &plugin : NULL;
}
