#ifndef SLUICE_TESTS_SUPPORT_PLUGIN_REGISTRY_H_
#define SLUICE_TESTS_SUPPORT_PLUGIN_REGISTRY_H_
// The built-in methods as they come out of a plug-in; empty where the build has none.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "sluice/api/registry.h"
#ifdef SLUICE_BUILTIN_PLUGIN
#include "sluice/runtime/dynload/plugin_library.h"
#endif

SLUICE_BEGIN_NAMESPACE
inline const Registry& PluginRouters() {
  static const Registry* registry = [] {
    auto* r = new Registry;
#ifdef SLUICE_BUILTIN_PLUGIN
    const auto info = LoadPlugin(SLUICE_BUILTIN_PLUGIN, *r);
    if (!info.ok()) {
      std::fprintf(stderr, "%s\n", std::string(info.status().message()).c_str());
      std::abort();
    }
#endif
    return r;
  }();
  return *registry;
}
// The same, into a registry of one's own.
inline absl::Status AddPluginRouters(Registry& r) {
#ifdef SLUICE_BUILTIN_PLUGIN
  return LoadPlugin(SLUICE_BUILTIN_PLUGIN, r, /*isolated=*/false).status();
#else
  return absl::UnimplementedError("this build has no plug-ins");
#endif
}
// The same methods as parameters of tests: "plugin NAME" out of the plug-in, NAME built in.
template <class Methods>
std::vector<std::string> PluginNames(const Methods& plugin) {
  std::vector<std::string> names;
  for (const auto& [name, factory] : plugin) names.push_back("plugin " + name);
  return names;
}
template <class Methods, class OwnMethods>
std::vector<std::string> AllNames(const Methods& plugin, const OwnMethods& own) {
  std::vector<std::string> names = PluginNames(plugin);
  for (const auto& [name, factory] : own) names.push_back(name);
  return names;
}
inline std::string MethodTestName(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == '/' || c == ' '; }, '_');
  return name;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_PLUGIN_REGISTRY_H_
