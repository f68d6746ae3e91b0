/* A host of ABI 1.0: knows nothing that came later. old_host PLUGIN ROUTER runs one assignment
 * router. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "sluice/tests/abi/frozen/1_0/sluice_abi.h"

int main(int argc, char** argv) {
  void* library = argc == 3 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
  if (library == NULL) return fprintf(stderr, "cannot be loaded: %s\n", dlerror()), 1;
  sluice_plugin_entry_v1_fn entry;
  void* symbol = dlsym(library, SLUICE_PLUGIN_ENTRY);
  memcpy(&entry, &symbol, sizeof entry);
  const sluice_plugin_v1* p = entry(SLUICE_ABI_MAJOR, SLUICE_ABI_MINOR);
  if (p == NULL) return fprintf(stderr, "does not want this host\n"), 1;
  if (p->struct_size < sizeof *p || p->magic != SLUICE_PLUGIN_MAGIC || p->abi_major != 1 ||
      p->min_host_minor > 0)
    return fprintf(stderr, "not for ABI 1.0\n"), 1;
  for (size_t i = 0; i < p->num_routers; ++i) {
    const sluice_router_v1* r = p->routers[i];
    if (strcmp(r->name, argv[2]) != 0) continue;
    char text[256] = "";
    sluice_error e = {text, sizeof text};
    void *router = NULL, *plan = NULL;
    const sluice_route_shape shape = {4, 2, 4, 1, 0};
    sluice_route_info info = {sizeof info, 0, 0};
    if (r->create(NULL, 0, NULL, &router, &e) != 0 ||
        r->make_plan(router, &shape, &plan, &info, &e) != 0)
      return fprintf(stderr, "%s\n", text), 1;
    float x[16] = {0}, weight[4];
    int32_t row_ptr[5], unit[4];
    _Alignas(64) char memory[1 << 16];
    const sluice_route_inputs in = {sizeof in, {NULL, 0, 0, 0}, {x, 4, 4, 4}};
    const sluice_executor none = {NULL, 1, 0, NULL};
    const sluice_run_context context = {sizeof context, memory, sizeof memory, &none};
    sluice_assignment a = {sizeof a, 0, 0, row_ptr, 5, unit, 4, weight, 4, NULL, 0, 0};
    if (info.workspace_bytes > sizeof memory || r->run(router, plan, &in, &context, &a, &e) != 0)
      return fprintf(stderr, "%s\n", text), 1;
    printf("%s: %d items to %d units:", r->name, (int)a.items, (int)a.units);
    for (int k = 0; k < a.items; ++k) printf(" %d", (int)unit[k]);
    printf("\n");
    r->destroy_plan(plan);
    r->destroy(router);
    return 0;
  }
  return fprintf(stderr, "has no router %s\n", argv[2]), 1;
}
