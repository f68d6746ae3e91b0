#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "sluice/runtime/cli/commands.h"
#include "sluice/runtime/service/server.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
pthread_t main_thread;

int Serve(const std::string& config, bool check, bool quiet) {
  absl::StatusOr<ServerSettings> settings = LoadSettings(config);
  if (!settings.ok()) return Fail(settings.status());
  if (check) {
    std::printf("%s: %zu tasks, %d stages, %zu policies, active %s\n", config.c_str(),
                settings->policies->graph->tasks.size(), settings->policies->graph->num_stages(),
                settings->policies->policies.size(), settings->config.active_policy().c_str());
    return 0;
  }
  const std::string http_host = settings->config.http().host();
  Server::Options options;
  options.config_path = config;
  if (!quiet)
    options.log = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  // Signals wait for this thread: no call elsewhere is interrupted. Threads that a library made
  // before main (OpenBLAS does) have them open still, and pass them on.
  sigset_t signals;
  sigemptyset(&signals);
  main_thread = pthread_self();
  for (int s : {SIGINT, SIGTERM, SIGHUP}) {
    sigaddset(&signals, s);
    signal(s, [](int got) { pthread_kill(main_thread, got); });
  }
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  auto server = Server::Create(*std::move(settings), options);
  if (!server.ok()) return Fail(server.status());
  for (const std::string& e : (*server)->endpoints()) std::printf("listening on %s\n", e.c_str());
  if ((*server)->http_port() > 0)
    std::printf("page and metrics on http://%s:%d/\n",
                http_host.find(':') == std::string::npos ? http_host.c_str()
                                                         : ("[" + http_host + "]").c_str(),
                (*server)->http_port());
  std::printf("an acknowledged outcome is kept by %s\n", (*server)->durability().c_str());
  std::fflush(stdout);

  absl::Status status;
  std::thread running([&] {
    status = (*server)->Run();
    pthread_kill(main_thread, SIGTERM);  // so that the wait below ends too
  });
  for (int got = 0; sigwait(&signals, &got) == 0 && got == SIGHUP;) (*server)->Reload();
  (*server)->Stop();
  running.join();
  return status.ok() ? 0 : Fail(status);
}
int Keygen(const std::string& path) {
  if (std::ifstream(path).good())
    return Fail(absl::AlreadyExistsError(path + " exists; a key is never overwritten"));
  const absl::StatusOr<CurveKeys> keys = NewCurveKeys();
  if (!keys.ok()) return Fail(keys.status());
  const mode_t before = umask(077);
  std::ofstream secret(path);
  secret << keys->secret << "\n";
  umask(before);
  if (!secret.flush()) return Fail(absl::UnavailableError(path + ": cannot be written"));
  std::ofstream(path + ".pub") << keys->public_key << "\n";
  std::printf("secret key in %s, public key in %s.pub: %s\n", path.c_str(), path.c_str(),
              keys->public_key.c_str());
  return 0;
}
}  // namespace

void AddServe(CLI::App& app, const Exit& exit) {
  auto* serve = app.add_subcommand(
      "serve", "Run the sidecar until SIGTERM; SIGHUP reads the configuration again");
  auto config = std::make_shared<std::string>();
  auto check = std::make_shared<bool>(false), quiet = std::make_shared<bool>(false);
  serve->add_option("--config", *config, "protobuf text of sluice.v1.ServerConfig")->required();
  serve->add_flag("--check", *check, "only say whether the configuration is good");
  serve->add_flag("--quiet", *quiet, "no JSON log on stderr");
  serve->footer("Example: sluice serve --config examples/agents/team.textproto");
  serve->callback([=] { exit(Serve(*config, *check, *quiet)); });
  auto* keygen = app.add_subcommand("keygen", "Make a CURVE key pair: FILE (secret) and FILE.pub");
  auto path = std::make_shared<std::string>();
  keygen->add_option("file", *path, "where the secret key goes")->required();
  keygen->footer("Example: sluice keygen server.key");
  keygen->callback([=] { exit(Keygen(*path)); });
}
}  // namespace cli
SLUICE_END_NAMESPACE
