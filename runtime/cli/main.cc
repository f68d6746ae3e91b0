// sluice: routing as a service, and what an operator and a researcher need around it.
#include <google/protobuf/stubs/logging.h>
#include <unistd.h>

#include <filesystem>

#include "sluice/runtime/cli/commands.h"

namespace {
// `sluice NAME ...` runs sluice-NAME, beside this program or on the PATH, as git does: commands may
// come from elsewhere.
void RunExternal(const CLI::App& app, char** argv) {
  const std::string name = argv[1];
  const auto same = [&](const CLI::App* s) { return s->get_name() == name; };
  if (name.empty() || name[0] == '-' || name.find('/') != std::string::npos ||
      !app.get_subcommands(same).empty())
    return;
  std::error_code error;
  const std::filesystem::path beside =
      std::filesystem::read_symlink("/proc/self/exe", error).parent_path() / ("sluice-" + name);
  std::string program = beside.string();
  argv[1] = program.data();
  execv(program.c_str(), argv + 1);
  program = "sluice-" + name;
  argv[1] = program.data();
  execvp(program.c_str(), argv + 1);
  std::fprintf(stderr,
               "error: no command '%s' and no sluice-%s here or on the PATH; sluice --help lists "
               "the commands\n",
               name.c_str(), name.c_str());
  std::exit(2);
}
}  // namespace

int main(int argc, char** argv) {
  google::protobuf::SetLogHandler(
      nullptr);  // what clients send wrong is counted and answered, not printed
  CLI::App app{"Routes queries through teams of agents and learns from how they end."};
  app.require_subcommand(1);
  app.set_version_flag("--version", SLUICE_VERSION);
  app.footer(
      "Example: sluice serve --config team.textproto &\n         sluice route --task math\nWith "
      "the model engine "
      "installed: sluice compare, sluice search.");
  int status = 0;
  const sluice::cli::Exit exit = [&](int s) { status = s; };
  sluice::cli::AddServe(app, exit);
  sluice::cli::AddAsk(app, exit);
  sluice::cli::AddIntent(app, exit);
  sluice::cli::AddReplay(app, exit);
  sluice::cli::AddBench(app, exit);
  sluice::cli::AddDemo(app, exit);
  sluice::cli::AddPlugin(app, exit);
  if (argc > 1) RunExternal(app, argv);
  CLI11_PARSE(app, argc, argv);
  return status;
}
