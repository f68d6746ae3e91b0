// In place of the lab's commands where the reference host is left out of the build.
#include <memory>

#include "sluice/runtime/cli/lab.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
int NoHost(const std::string& command) {
  return Fail(absl::UnimplementedError(
      absl::StrCat("'", command,
                   "' runs a model, and this sluice was built without the model host; build it "
                   "with -DSLUICE_BUILD_HOST=ON")));
}
}  // namespace

void AddLab(CLI::App& app, const Exit& exit) {
  for (const char* name :
       {"perplexity", "facts", "generate", "compare", "search", "search-schedule", "evaluate",
        "calibrate", "classify", "prune-encoder", "prune"}) {
    auto* s = app.add_subcommand(name, "Not in this build: it has no model host");
    s->allow_extras();
    s->footer("Example: cmake -DSLUICE_BUILD_HOST=ON ... builds it in");
    s->callback([=] { exit(NoHost(name)); });
  }
}
std::function<int()> AddAttentionDemo(CLI::App& demo, CLI::Option* /*sidecar*/) {
  demo.allow_extras();
  return [] { return NoHost("demo"); };
}
}  // namespace cli
SLUICE_END_NAMESPACE
