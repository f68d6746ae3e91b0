#include <cstdio>

#include "absl/strings/str_join.h"
#include "sluice/runtime/cli/commands.h"
#include "sluice/runtime/dynload/installed.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
int Check(const std::vector<std::string>& files) {
  int refused = 0;
  for (const std::string& file : files) {
    const auto info = CheckPlugin(file);
    if (!info.ok()) {
      std::fprintf(stderr, "refused: %s\n", std::string(info.status().message()).c_str());
      ++refused;
      continue;
    }
    std::printf("%s: %s %s, ABI %u.%u\n", file.c_str(), info->manifest.name.c_str(),
                info->manifest.version.c_str(), info->manifest.abi_major, info->manifest.abi_minor);
    for (const std::string& m : info->methods) std::printf("  %s\n", m.c_str());
  }
  return refused > 0 ? 1 : 0;
}
template <class Map>
void Print(const char* domain, const Map& map) {
  for (const auto& [name, factory] : map)
    std::printf("%s/%s\n%s", domain, name.c_str(), factory->Describe().c_str());
}
int List() {
  const Installed& all = InstalledMethods();
  Print("attention", all.registry.attention);
  Print("assignment", all.registry.routers);
  Print("agent", all.registry.agents);
  for (const PluginInfo& p : all.plugins)
    std::printf("\nfrom the plug-in %s %s: %s\n", p.manifest.name.c_str(),
                p.manifest.version.c_str(), absl::StrJoin(p.methods, " ").c_str());
  for (const absl::Status& s : all.refused)
    std::fprintf(stderr, "refused: %s\n", std::string(s.message()).c_str());
  return 0;
}
}  // namespace

void AddPlugin(CLI::App& app, const Exit& exit) {
  auto* plugin = app.add_subcommand("plugin", "Plug-ins: .so files of routers (api/plugin.h)");
  plugin->require_subcommand(1);
  plugin->footer("Example: sluice plugin check strided.so");
  auto* check = plugin->add_subcommand(
      "check",
      "Read a file's manifest, load it in a process of its own and say what is in it, or why not");
  auto files = std::make_shared<std::vector<std::string>>();
  check->add_option("file", *files, "plug-in files")->required();
  check->footer("Example: sluice plugin check strided.so");
  check->callback([=] { exit(Check(*files)); });
  auto* list = app.add_subcommand(
      "list", "All methods and their settings, built in and from plug-ins (SLUICE_PLUGIN_PATH)");
  list->footer("Example: SLUICE_PLUGIN_PATH=. sluice list");
  list->callback([=] { exit(List()); });
}
}  // namespace cli
SLUICE_END_NAMESPACE
