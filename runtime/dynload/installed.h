#ifndef SLUICE_RUNTIME_DYNLOAD_INSTALLED_H_
#define SLUICE_RUNTIME_DYNLOAD_INSTALLED_H_
// Every method that this machine has: built in, and from the plug-ins on the search path.
#include "sluice/runtime/dynload/plugin_library.h"

SLUICE_BEGIN_NAMESPACE
struct Installed {
  Registry registry;
  std::vector<PluginInfo> plugins;
  std::vector<absl::Status> refused;  // files on the search path that could not be loaded
};
// Made at the first call, which loads the plug-ins; they stay for as long as the process lives.
const Installed& InstalledMethods();

// What to tell a user whose method was not found: it may be in a file that was refused. Other
// statuses stay.
absl::Status WithRefused(absl::Status);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_DYNLOAD_INSTALLED_H_
