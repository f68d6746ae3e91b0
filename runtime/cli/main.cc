// sluice: routing as a service, and what an operator and a researcher need around it.
#include <google/protobuf/stubs/logging.h>

#include "sluice/routers/builtin.h"
#include "sluice/runtime/cli/commands.h"

int main(int argc, char** argv) {
  google::protobuf::SetLogHandler(nullptr);  // what clients send wrong is counted and answered, not printed
  CLI::App app{"Routes queries through teams of agents and learns from how they end."};
  app.require_subcommand(1);
  app.set_version_flag("--version", SLUICE_VERSION);
  app.footer("Example: sluice serve --config team.textproto &\n         sluice route --task math");
  int status = 0;
  const sluice::cli::Exit exit = [&](int s) { status = s; };
  sluice::cli::AddServe(app, exit);
  sluice::cli::AddAsk(app, exit);
  sluice::cli::AddIntent(app, exit);
  sluice::cli::AddReplay(app, exit);
  sluice::cli::AddBench(app, exit);
  sluice::cli::AddDemo(app, exit);
  auto* list = app.add_subcommand("list", "Built-in agent routers and their settings");
  list->callback([] {
    for (const auto& [name, factory] : sluice::BuiltinRouters().agents)
      std::printf("%s\n%s", name.c_str(), factory->Describe().c_str());
  });
  CLI11_PARSE(app, argc, argv);
  return status;
}
