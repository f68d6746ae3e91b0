#ifndef SLUICE_RUNTIME_CLI_COMMANDS_H_
#define SLUICE_RUNTIME_CLI_COMMANDS_H_
// The commands of `sluice`, each in a file of its own. A command adds itself to the parser and
// leaves its exit status.
#include <memory>
#include <string>

#include "sluice/runtime/cli/command.h"
#include "sluice/runtime/service/client.h"
#include "sluice/runtime/service/endpoint.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
// --endpoint and CURVE keys, alike for all commands that talk to a server.
struct Connection {
  std::string endpoint = DefaultEndpoint();
  std::string server_key, secret_key_file;
  int timeout_ms = 2000;
  void AddTo(CLI::App& app);
  absl::StatusOr<std::unique_ptr<Client>> Open() const;
};
void AddServe(CLI::App&, const Exit&);
void AddAsk(CLI::App&, const Exit&);  // route, feedback, explain, top, experiment, warm-up, policy
void AddIntent(CLI::App&, const Exit&);
void AddReplay(CLI::App&, const Exit&);
void AddOpe(CLI::App&, const Exit&);
void AddPlugin(CLI::App&, const Exit&);
void AddBench(CLI::App&, const Exit&);
}  // namespace cli
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_CLI_COMMANDS_H_
