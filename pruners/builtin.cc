#include "sluice/pruners/builtin.h"

#include "pruners_builtin_includes.h"

SLUICE_BEGIN_NAMESPACE
const Registry& BuiltinPruners() {
  static const Registry* registry = [] {
    auto* r = new Registry;
    absl::Status status;
#define SLUICE_METHOD(domain, folder, Type) status.Update(r->Add<Type>());
#include "sluice/pruners/builtin.def"
#undef SLUICE_METHOD
    SLUICE_DCHECK(status.ok());
    return r;
  }();
  return *registry;
}
SLUICE_END_NAMESPACE
