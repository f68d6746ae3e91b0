#ifndef SLUICE_RUNTIME_LAB_EVALUATE_PRUNING_TASK_H_
#define SLUICE_RUNTIME_LAB_EVALUATE_PRUNING_TASK_H_
// What a pruned prompt is still good for: facts asked about at its end, and the text that follows
// it. The prompt is pruned without its answers; what comes after runs dense over the ragged caches.
#include <string>
#include <vector>

#include "sluice/runtime/host/engine.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
struct PruningPrompt {
  std::vector<int32_t> prompt, rest;
  std::vector<uint8_t> scored;  // of `rest`
  bool facts = false;
};
// `count` prompts of both kinds from `held` tokens [begin, end).
std::vector<PruningPrompt> PruningPrompts(const host::Model& model,
                                          const std::vector<int32_t>& held, int64_t begin,
                                          int64_t end, int64_t length, int64_t count,
                                          uint64_t seed);
struct PruningScore {
  double facts = 0, next = 0;  // accuracy of answer tokens, and of the tokens after plain text
  double nll = 0;              // mean over both tasks
  double sparsity = 0;         // measured, mean over blocks
  double accuracy() const { return (facts + next) / 2; }
};
// `single`: what comes after the prompt is fed token by token, as decoding does.
absl::StatusOr<PruningScore> ScorePruning(host::Engine& engine,
                                          const std::vector<PruningPrompt>& prompts,
                                          bool single = false);
// Searches the sparsity of every block for a mean, with the static router or with learned `weights`
// and from `start`: FTP's scheduler. Fitness: the negative loss.
struct ScheduleOptions {
  double sparsity = 0.3;
  int64_t prompts = 4, length = 1024, population = 16, generations = 12;
  uint64_t seed = 1;
  int threads = 0;
  const WeightSource* weights = nullptr;
  std::vector<double> start;
};
absl::StatusOr<std::vector<double>> SearchSchedule(const host::Model& model,
                                                   const std::vector<int32_t>& held,
                                                   const ScheduleOptions& options);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_EVALUATE_PRUNING_TASK_H_
