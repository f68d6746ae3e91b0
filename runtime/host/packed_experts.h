#ifndef SLUICE_RUNTIME_HOST_PACKED_EXPERTS_H_
#define SLUICE_RUNTIME_HOST_PACKED_EXPERTS_H_
// The experts of a model as panels (kernels/packed_gemm): they read their tokens where they lie and
// add to where their results belong, for Dispatch::RunAdding.
#include <cstdint>

#include "absl/status/statusor.h"
#include "sluice/api/workspace.h"
#include "sluice/runtime/dispatch/dispatch.h"
#include "sluice/runtime/host/model.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
class PackedExperts {
 public:
  // Rows that an expert takes at once: what it computes of them stays in the cache.
  static constexpr int64_t kRows = 256;

  // A copy of the experts' weights, as the model has them now. InvalidArgument for a model without
  // experts, and for one whose activation is not SiLU. O(weights).
  static absl::StatusOr<PackedExperts> Create(const Model& model);

  // Of Add, a block for every worker.
  size_t workspace_bytes() const { return static_cast<size_t>(kRows * ffn_) * sizeof(float); }
  // The expert `share.unit` of a layer, at most kRows of its tokens. O(rows width ffn).
  void Add(int64_t layer, const UnitShare& share, const Workspace& workspace) const;

 private:
  const float* At(int64_t layer, int64_t expert) const {
    return panels_.workspace().At<float>(0) + (layer * experts_ + expert) * one_;
  }

  int64_t experts_ = 0;
  int64_t width_ = 0;
  int64_t ffn_ = 0;
  int64_t half_ = 0;  // floats of a gate's panels, and of those of what it gates
  int64_t one_ = 0;   // of an expert: gate, up, down
  OwnedWorkspace panels_;
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_PACKED_EXPERTS_H_
