#ifndef SLUICE_RUNTIME_LAB_PRUNE_PRUNE_WEIGHTS_H_
#define SLUICE_RUNTIME_LAB_PRUNE_PRUNE_WEIGHTS_H_
// Prunes the matrices of a model's layers, layer by layer: what a layer's matrices are multiplied
// with is gathered over the calibration text, they are pruned, and the layer runs again, so that
// the layers after it see what the pruned ones say. Embedding, output head and norms stay.
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/api/executor.h"
#include "sluice/api/weight_pruner.h"
#include "sluice/runtime/host/model.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
struct WeightPruning {
  absl::Span<const std::unique_ptr<const WeightPruner>> stages;
  PruneTarget target;
  // Where set: the target of the tensor `name`, [rows, cols]; nullopt leaves it as it is.
  std::function<std::optional<PruneTarget>(const std::string& name, int64_t rows, int64_t cols)>
      target_of;
  bool repair_attention_only = false;  // stages that repair leave the FFN's matrices alone
  int64_t window = 2048;               // tokens of a sample
  int threads = 0;
};
struct PrunedMatrix {
  std::string name;  // of its tensor
  int64_t weights = 0, zeros = 0;
  // Of its output over the calibration text: squared error over squared size, as this layer's
  // inputs were; NaN without calibration.
  double error = 0;
};
struct PrunedWeights {
  std::map<std::string, std::string> tensors;  // by name: bytes in the type that the file has
  std::map<std::string, Mask> masks;
  std::vector<PrunedMatrix> matrices;  // in the order of the layers
};
// `model` is what `file` holds and takes the pruned weights, as the file's types round them. No
// tokens: nothing is gathered, for methods that read no statistics. `progress` gets the layers
// done. O(tokens) times the model, twice, and what the method costs.
absl::StatusOr<PrunedWeights> PruneWeights(const Gguf& file, host::Model& model,
                                           const std::vector<int32_t>& tokens,
                                           const WeightPruning& how,
                                           const std::function<void(double)>& progress = {});
// The same in several ways at once, each alone: every layer sees what the dense ones before it say,
// and the model stays as it is. Ways share their window and threads. The statistics are gathered
// once.
absl::StatusOr<std::vector<PrunedWeights>> PruneEachWay(
    const Gguf& file, host::Model& model, const std::vector<int32_t>& tokens,
    absl::Span<const WeightPruning> ways, const std::function<void(double)>& progress = {});

// What `bytes` hold as the data of a tensor like this one.
std::vector<float> GgufDecodeAs(const GgufTensor& like, const std::string& bytes);
// The file with these tensors' bytes in place of its own.
GgufWriter WithTensors(const Gguf& file, const std::map<std::string, std::string>& tensors);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_PRUNE_WEIGHTS_H_
