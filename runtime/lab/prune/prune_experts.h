#ifndef SLUICE_RUNTIME_LAB_PRUNE_PRUNE_EXPERTS_H_
#define SLUICE_RUNTIME_LAB_PRUNE_PRUNE_EXPERTS_H_
// Whole experts that a text uses least, as many in every layer: the gate's rows go with them, so
// that their tokens go to the next best.
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/runtime/host/model.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// [layers][experts]: tokens that every expert of the whole model computes. O(tokens) times the
// model. `progress` gets the tokens done.
absl::StatusOr<std::vector<std::vector<double>>> ExpertUse(
    const host::Model& model, const std::vector<int32_t>& tokens, int64_t window, int threads,
    const std::function<void(int64_t)>& progress = {});

// [layers]: the experts that stay, ascending: floor(ratio experts) go, the least used first; of
// equals the later one. InvalidArgument where none would go, or fewer stay than a token uses.
absl::StatusOr<std::vector<std::vector<int64_t>>> ExpertsThatStay(
    const std::vector<std::vector<double>>& use, double ratio, int64_t experts_used);

// The file with these experts only, as many in every layer; all else as it is.
absl::StatusOr<GgufWriter> WithExperts(const Gguf& file,
                                       const std::vector<std::vector<int64_t>>& stay);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_PRUNE_EXPERTS_H_
