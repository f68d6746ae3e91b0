#ifndef SLUICE_RUNTIME_LAB_PRUNE_PRUNE_H_
#define SLUICE_RUNTIME_LAB_PRUNE_PRUNE_H_
// Prunes a model's file into another that any host of the format loads: weights of the layers'
// matrices set to 0, or whole layers, heads, neurons or experts left out.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sluice/api/weight_pruner.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
struct PruneOptions {
  std::string in, out;           // GGUF files
  std::string method = "wanda";  // a pruner of weights, name:key=value,...; layers, heads,
                                 // query_heads, neurons, experts
  std::string start;             // the pruner whose mask a repair starts from; "": wanda
  double sparsity = 0.5;         // share that goes, [0, 1)
  std::string pattern;           // "N:M": N of every M neighbours stay; "BxC": blocks; "": any
  std::string scope = "row";     // of the share: row or layer (the whole matrix)
  bool repair_attention_only = false;

  std::string calibrate;  // text, or token ids (IsTokenFile); "": none
  int64_t skip = 0;       // tokens of it
  int64_t count = 16384;
  int64_t window = 2048;           // tokens of a sequence, here and for perplexity
  std::string held_out;            // "": what follows the tokens that are calibrated on
  int64_t held_out_skip = 0;       // tokens of it
  int64_t held_out_count = 16384;  // rounded down to whole windows, spread over the rest of it
  int threads = 0;
};
// "2:4", "4x8", or "" with a share of a row or layer -> a target. Errors say what is allowed.
absl::StatusOr<PruneTarget> ReadPruneTarget(const PruneOptions& o);

// `method`, a pruner of weights, behind `start` where it repairs a mask. Errors say what there is.
using PruneStages = std::vector<std::unique_ptr<const WeightPruner>>;
absl::StatusOr<PruneStages> MakePruneStages(const PruneOptions& o);

// InvalidArgument where `out` is `in`, by whatever name.
absl::Status CheckOtherFile(const std::string& in, const std::string& out);

// Reads `in`, prunes, writes `out` whole or not at all, and prints perplexity in the held-out
// windows before and after, after from the file that was written, and the mean change of log
// perplexity a window with its interval. `in` is only read; `out` is another file. No window holds
// a token that is calibrated on. OutOfRange where a text is shorter than a window.
absl::Status RunPrune(const PruneOptions& options);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_PRUNE_H_
