#ifndef SLUICE_PRUNERS_BUILTIN_H_
#define SLUICE_PRUNERS_BUILTIN_H_
#include "sluice/api/registry.h"

SLUICE_BEGIN_NAMESPACE
// A registry with every pruner of builtin.def.
const Registry& BuiltinPruners();
absl::Status AddBuiltinPruners(Registry&);
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_BUILTIN_H_
