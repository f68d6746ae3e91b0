#ifndef SLUICE_ROUTERS_EXPERT_COMMON_RELU_FFN_H_
#define SLUICE_ROUTERS_EXPERT_COMMON_RELU_FFN_H_
// A gated feed-forward network whose activation is a ReLU computes only the neurons that fire:
//
//   SCORE   g = gate x
//   SELECT  the neurons with g > 0
//   own     y = sum over them of g (up x) down
//
// Skipping changes no bit: neurons are added in rising order, each by one multiply-add, and one
// that does not fire would add 0. (Where weights are infinite it would add NaN, and where y has
// underflowed, take the sign of a zero.) A NaN in g fires.
#include <algorithm>
#include <cstdint>

#include "sluice/api/dtype.h"
#include "sluice/api/tensor_view.h"
#include "sluice/api/version.h"
#include "sluice/runtime/kernels/dot/dot.h"
#include "sluice/runtime/kernels/gather/gather.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
struct ReluFfn {
  MatrixView<const float> gate, up;  // [neurons, dim]
  MatrixView<const float> down;      // [neurons, dim]: what a neuron adds, the matrix transposed

  // x [n, dim] -> y [n, dim]; returns the pairs of row and neuron that fired. A neuron's weights
  // are read once for all rows, and only if it fires for one. O(n neurons dim) for the gate, and
  // O(dim) a pair twice.
  int64_t Run(MatrixView<const float> x, MatrixView<float> y) const {
    constexpr int32_t kRow = 0;
    const int64_t dim = x.cols;
    for (int64_t r = 0; r < x.rows; ++r) std::fill_n(y.row(r), dim, 0.0f);
    int64_t fired = 0;
    for (int64_t j = 0; j < gate.rows; ++j) {
      for (int64_t r = 0; r < x.rows; ++r) {
        const float g = kernels::Dot(x.row(r), gate.row(j), DType::kF32, dim);
        if (g <= 0) continue;
        const float h = g * kernels::Dot(x.row(r), up.row(j), DType::kF32, dim);
        kernels::ScatterAddRows(down.row(j), &kRow, &h, 1, dim, y.row(r), dim);
        ++fired;
      }
    }
    return fired;
  }
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_COMMON_RELU_FFN_H_
