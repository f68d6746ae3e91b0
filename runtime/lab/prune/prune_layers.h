#ifndef SLUICE_RUNTIME_LAB_PRUNE_PRUNE_LAYERS_H_
#define SLUICE_RUNTIME_LAB_PRUNE_PRUNE_LAYERS_H_
// Whole layers that change the hidden state least, by the angle between what goes into a layer and
// what comes out of it (block influence, ShortGPT, arXiv 2403.03853).
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/runtime/host/model.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// 1 - the mean over the tokens of cos(in, out), a layer; all layers are in place while it is
// measured. A state of length 0 has cosine 0. O(tokens) times the model.
absl::StatusOr<std::vector<double>> LayerInfluence(
    const host::Model& model, const std::vector<int32_t>& tokens, int64_t window, int threads,
    const std::function<void(double)>& progress = {});

// The layers that stay, ascending: floor(ratio layers) go, the least first; of equals the later
// one, and what is no number before any. InvalidArgument where none would go or none would stay.
absl::StatusOr<std::vector<int64_t>> LayersThatStay(const std::vector<double>& influence,
                                                    double ratio);

// The file with these layers only, renumbered; all else as it is.
absl::StatusOr<GgufWriter> WithLayers(const Gguf& file, const std::vector<int64_t>& stay);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_PRUNE_LAYERS_H_
