#ifndef SLUICE_RUNTIME_LAB_EVALUATE_EVALUATE_H_
#define SLUICE_RUNTIME_LAB_EVALUATE_EVALUATE_H_
// Quality of the learned methods on a bundled model: each prints a table with mean and spread over
// the training seeds (or the draws of its control), beside dense and beside a random choice at the
// same rate.
#include <string>

#include "absl/status/status.h"
#include "sluice/runtime/host/model.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
struct EvaluateOptions {
  int64_t prompts = 12;          // per task and length
  int64_t length = 4096;         // tokens of a quality prompt
  int64_t speed_length = 16000;  // tokens of a timed prompt; 0: no timing
  int64_t repeats = 7;           // timed repetitions; medians are printed
  int threads = 0;
  std::string folder;  // where the trained weights and held-out tokens are
  std::string tokens;  // held-out text of the model; empty: that of the bundled one
  std::string data;    // where the query sets are (shrp)
};
absl::Status EvaluateFluxAttention(const host::Model& model, const EvaluateOptions& options);
absl::Status EvaluateInformedRouting(const host::Model& model, const EvaluateOptions& options);
absl::Status EvaluateFtp(const host::Model& model, const EvaluateOptions& options);
// Fitted, not trained: `prompts` windows of held-out text, and blocks of neurons as clustered, as
// they stand and at random.
absl::Status EvaluateSpt(const host::Model& model, const EvaluateOptions& options);
// Fitted, not trained: gates before attention for a Mixture of Experts whose own stand after it;
// how often both name the same experts, and `prompts` windows of held-out text.
absl::Status EvaluateSmallThinker(const host::Model& model, const EvaluateOptions& options);
absl::Status EvaluateShrp(const EvaluateOptions& options);
// Its last table alone: throughput and size of the bundled encoder, dense and pruned.
absl::Status ShrpSpeed(const EvaluateOptions& options);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_EVALUATE_EVALUATE_H_
