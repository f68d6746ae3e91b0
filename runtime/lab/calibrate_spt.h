#ifndef SLUICE_RUNTIME_LAB_CALIBRATE_SPT_H_
#define SLUICE_RUNTIME_LAB_CALIBRATE_SPT_H_
// SPT's routed FFN for a dense model without training: the neurons of every layer in blocks, by
// what they did on a text, and a router fitted to what the blocks add (routers/expert/spt/clusters,
// split). Weights of expert/spt, which `sluice perplexity --router expert/spt:weights=FILE` runs.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/runtime/host/model.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// What the FFN of one layer was given and what its last matrix was multiplied with.
struct FfnSamples {
  int64_t tokens = 0;
  std::vector<float> input;     // [tokens, width], normalised
  std::vector<float> activity;  // [tokens, ffn]
};
// One a layer; `tokens` in windows that start from nothing. InvalidArgument for a Mixture of
// Experts.
absl::StatusOr<std::vector<FfnSamples>> ObserveFfn(const host::Model& model,
                                                   const std::vector<int32_t>& tokens,
                                                   int64_t window, int threads);

// How neurons are put into blocks: by what they do, as they stand, or at random (the control).
enum class BlockOrder : uint8_t { kClustered, kAsTheyStand, kRandom };
struct SptOptions {
  int64_t blocks = 4;
  BlockOrder order = BlockOrder::kClustered;
  bool random_router = false;  // the control: a router of random weights
  int64_t turns = 20;          // of the clustering
  double ridge = 1e-2;
  int64_t window = 1024;  // tokens a sequence
  uint64_t seed = 1;      // of what is random
  int threads = 0;
};
struct SptLayer {
  std::vector<int32_t> order;  // [ffn], neurons block by block
  Linear router;               // [width, blocks]
};
absl::StatusOr<SptLayer> SplitFfn(const host::Model& model, int64_t layer, const FfnSamples& seen,
                                  const SptOptions& options);

// GGUF bytes with the keys of expert/spt. Errors: blocks that do not divide the neurons, fewer
// tokens than the model is wide. O(layers turns ffn blocks tokens + layers tokens ffn width).
absl::StatusOr<std::string> WriteSpt(const host::Model& model, const std::vector<SptLayer>& layers,
                                     int64_t blocks);
absl::StatusOr<std::string> CalibrateSpt(
    const host::Model& model, const std::vector<int32_t>& tokens, const SptOptions& options,
    const std::function<void(const std::string&)>& progress = {});
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_CALIBRATE_SPT_H_
