#ifndef SLUICE_RUNTIME_KERNELS_SOFTMAX_SOFTMAX_H_
#define SLUICE_RUNTIME_KERNELS_SOFTMAX_SOFTMAX_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
// x[i] = exp(x[i] - lse) in place; returns lse = log sum exp(x). -inf entries become exactly 0.
// Empty or all -inf: x becomes 0 and lse is -inf. NaN anywhere: everything is NaN. O(n).
float Softmax(float* x, int64_t n);
// lse only.
float LogSumExp(const float* x, int64_t n);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_SOFTMAX_SOFTMAX_H_
