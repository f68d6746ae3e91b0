#ifndef SLUICE_RUNTIME_CLI_DEMO_H_
#define SLUICE_RUNTIME_CLI_DEMO_H_
// `sluice demo`: attention routers on a long prompt, or with --sidecar agents under real queries.
#include "sluice/runtime/cli/command.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
void AddDemo(CLI::App&, const Exit&);
// The sidecar demo's options on `demo`, refused without its flag `sidecar`. Returns what runs it.
std::function<int()> AddSidecarDemo(CLI::App& demo, CLI::Option* sidecar);
}  // namespace cli
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_CLI_DEMO_H_
