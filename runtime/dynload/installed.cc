#include "sluice/runtime/dynload/installed.h"

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/pruners/builtin.h"
#include "sluice/routers/builtin.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
const Installed& InstalledMethods() {
  static const Installed* installed = [] {
    auto* all = new Installed;
    absl::Status status = AddBuiltinRouters(all->registry);
    status.Update(AddBuiltinPruners(all->registry));
    SLUICE_DCHECK(status.ok());
    all->registry.OpenWeightsWith(OpenWeights);
    all->plugins = LoadPlugins(PluginFolders(), all->registry, all->refused);
    return all;
  }();
  return *installed;
}
absl::Status WithRefused(absl::Status status) {
  if (status.code() != absl::StatusCode::kNotFound || InstalledMethods().refused.empty())
    return status;
  std::string text(status.message());
  for (const absl::Status& s : InstalledMethods().refused)
    absl::StrAppend(&text, "\n  refused: ", s.message());
  return absl::NotFoundError(text);
}
SLUICE_END_NAMESPACE
