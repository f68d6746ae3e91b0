#include "sluice/runtime/cli/demo.h"

#include <memory>

#include "sluice/runtime/cli/lab.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
void AddDemo(CLI::App& app, const Exit& exit) {
  auto* s = app.add_subcommand("demo",
                               "Run a language model on a long prompt under every attention "
                               "router; with --sidecar, real queries through a team of agents");
  auto sidecar = std::make_shared<bool>(false);
  CLI::Option* flag =
      s->add_flag("--sidecar", *sidecar,
                  "serve, replay an outcome log with feedback, compare with the baselines");
  const auto of_agents = AddSidecarDemo(*s, flag);
  const auto of_attention = AddAttentionDemo(*s, flag);
  s->footer(
      "Example: sluice demo --length 8000 --routers dense mean_pool:k=16\n"
      "         sluice demo --sidecar --log examples/agents/pool_a.csv.gz --stay");
  s->callback([=] {
    // A build without the host takes any option, to say that it has none.
    if (*sidecar && s->remaining_size() > 0)
      return exit(Fail(absl::InvalidArgumentError(
          absl::StrCat("demo --sidecar: '", s->remaining()[0], "' is no option of it"))));
    exit(*sidecar ? of_agents() : of_attention());
  });
}
}  // namespace cli
SLUICE_END_NAMESPACE
