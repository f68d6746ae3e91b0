#ifndef SLUICE_RUNTIME_DYNLOAD_PLUGIN_LIBRARY_H_
#define SLUICE_RUNTIME_DYNLOAD_PLUGIN_LIBRARY_H_
// Loads plug-ins of api/plugin.h. What they bring is used like what is built in.
#include <chrono>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sluice/api/registry.h"
#include "sluice/runtime/dynload/child_check.h"

SLUICE_BEGIN_NAMESPACE
// What a file says of itself, read without running any of it.
struct PluginManifest {
  std::string name, version;
  uint32_t abi_major = 0, abi_minor = 0, min_host_minor = 0;
};
// Whatever is no regular file is refused unread.
absl::StatusOr<PluginManifest> ReadPluginManifest(const std::string& path);

struct PluginInfo {
  PluginManifest manifest;
  std::vector<std::string> methods;  // "attention/my_router"
};
// Reads the manifest, then loads and checks the file in a child process, so that one that crashes
// is refused and not suffered, nor is one that has not finished loading when `limit` is over.
// Registers nothing.
absl::StatusOr<PluginInfo> CheckPlugin(const std::string& path,
                                       std::chrono::milliseconds limit = kChildCheckLimit);
// Adds the file's methods; all or none. The library stays mapped as long as the process lives.
// `isolated`: CheckPlugin first, within `limit`.
absl::StatusOr<PluginInfo> LoadPlugin(const std::string& path, Registry& registry,
                                      bool isolated = true,
                                      std::chrono::milliseconds limit = kChildCheckLimit);

// Folders of the environment variable SLUICE_PLUGIN_PATH (parted by ':'), then the installed one.
std::vector<std::string> PluginFolders();
// Every *.so of these folders, in order of name, each within `limit`; a file that cannot be loaded
// is in `refused` with its reason.
std::vector<PluginInfo> LoadPlugins(const std::vector<std::string>& folders, Registry& registry,
                                    std::vector<absl::Status>& refused,
                                    std::chrono::milliseconds limit = kChildCheckLimit);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_DYNLOAD_PLUGIN_LIBRARY_H_
