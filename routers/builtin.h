#ifndef SLUICE_ROUTERS_BUILTIN_H_
#define SLUICE_ROUTERS_BUILTIN_H_
#include "sluice/api/registry.h"

SLUICE_BEGIN_NAMESPACE
// A registry with every router of builtin.def.
const Registry& BuiltinRouters();
absl::Status AddBuiltinRouters(Registry&);
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_BUILTIN_H_
