// sluice: routing as a service, and what an operator and a researcher need around it.
#include <google/protobuf/stubs/logging.h>

#include "sluice/runtime/cli/commands.h"
#include "sluice/runtime/cli/demo.h"
#include "sluice/runtime/cli/lab.h"

namespace {
// Said before the parser says it less plainly.
bool Unknown(const CLI::App& app, const std::string& command) {
  const auto same = [&](const CLI::App* s) { return s->get_name() == command; };
  return !command.empty() && command[0] != '-' && app.get_subcommands(same).empty();
}
}  // namespace

int main(int argc, char** argv) {
  // What clients send wrong is counted and answered, not printed.
  google::protobuf::SetLogHandler(nullptr);
  CLI::App app{
      "Routes queries through teams of agents and learns from how they end; shows and compares "
      "what routers let a model skip."};
  app.require_subcommand(1);
  app.set_version_flag("--version", SLUICE_VERSION);
  app.footer(
      "Example: sluice serve --config team.textproto &\n         sluice route --task math\n"
      "         sluice compare --policy dense --policy mean_pool:k=16");
  int status = 0;
  const sluice::cli::Exit exit = [&](int s) { status = s; };
  sluice::cli::AddDemo(app, exit);
  sluice::cli::AddServe(app, exit);
  sluice::cli::AddAsk(app, exit);
  sluice::cli::AddIntent(app, exit);
  sluice::cli::AddReplay(app, exit);
  sluice::cli::AddOpe(app, exit);
  sluice::cli::AddBench(app, exit);
  sluice::cli::AddPlugin(app, exit);
  sluice::cli::AddLab(app, exit);
  if (argc > 1 && Unknown(app, argv[1])) {
    std::fprintf(stderr, "error: no command '%s'; sluice --help lists the commands\n", argv[1]);
    return 2;
  }
  CLI11_PARSE(app, argc, argv);
  return status;
}
