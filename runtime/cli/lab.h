#ifndef SLUICE_RUNTIME_CLI_LAB_H_
#define SLUICE_RUNTIME_CLI_LAB_H_
// The commands that run a model on the reference host. A build without the host (SLUICE_BUILD_HOST
// off) has without_lab.cc in their place, which says so by the command's name.
#include "sluice/runtime/cli/command.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
// perplexity, facts, generate, compare, search, search-schedule, evaluate, calibrate, classify,
// prune-encoder, prune.
void AddLab(CLI::App&, const Exit&);
// The attention demo's options on `demo`, refused beside `sidecar`, the flag of the other demo.
// Returns what runs it.
std::function<int()> AddAttentionDemo(CLI::App& demo, CLI::Option* sidecar);
}  // namespace cli
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_CLI_LAB_H_
