#ifndef SLUICE_RUNTIME_HOST_LAYER_MATH_H_
#define SLUICE_RUNTIME_HOST_LAYER_MATH_H_
// The dense arithmetic of a decoder layer, and what of it was done.
#include <cstdint>
#include <vector>

#include "sluice/api/executor.h"
#include "sluice/api/workspace.h"
#include "sluice/runtime/host/model.h"
#include "sluice/runtime/host/sparse_weights.h"
#include "sluice/runtime/kernels/rope/rope_table.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
// Measured in the matrix products of the layers (embedding and output head not counted). What
// routers compute themselves counts by the cost that they declare.
struct LinearCounters {
  int64_t macs = 0;
  int64_t weight_bytes = 0;
};

class LayerMath {
 public:
  // `max_rows`: tokens of one pass; `capacity`: of a sequence.
  LayerMath(const ModelShape& shape, int64_t max_rows, int64_t capacity, Executor* executor,
            SparseWeights sparse = {});

  // y [n, width] = RMSNorm(x), scaled by weight [width].
  void Norm(const std::vector<float>& weight, const float* x, int64_t n, float* y) const;
  // Rotary embedding of `heads` heads that lie one behind the other, all of one position.
  void Rotate(float* x, int64_t heads, int64_t position) const;
  // y [n, width] (+)= FFN(h), of one expert where there are some, else expert 0.
  void Ffn(const Layer& layer, int64_t expert, const float* h, int64_t n, float* y,
           bool accumulate);
  // What the last Ffn multiplied its last matrix with, [n, ffn].
  const float* activations() const { return act_.data(); }
  // y [n, out] = x [n, in] W^T (+ y when accumulate), by the packed W where that is faster.
  void MatMul(const float* x, const float* w, int64_t n, int64_t in, int64_t out, float* y,
              bool accumulate = false);
  // Work done elsewhere.
  void Count(int64_t multiply_adds, int64_t weights);

  const SparseWeights& sparse() const { return sparse_; }
  const LinearCounters& counters() const { return counters_; }
  void set_counters(const LinearCounters& c) { counters_ = c; }

 private:
  ModelShape shape_;
  Executor* executor_;
  LinearCounters counters_;
  SparseWeights sparse_;
  OwnedWorkspace panels_;  // of products with packed weights
  kernels::RopeTable rope_{kernels::RopeTable::Direction::kToPosition};
  std::vector<float> gate_up_;  // [max_rows, 2 ffn]
  std::vector<float> act_;      // [max_rows, ffn]
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_LAYER_MATH_H_
