#ifndef SLUICE_RUNTIME_KERNELS_GELU_GELU_H_
#define SLUICE_RUNTIME_KERNELS_GELU_GELU_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
// out[i] = g(x[i] + bias[i]), g(z) = z / (1 + exp(-2 sqrt(2/pi) (z + 0.044715 z^3))): the tanh form
// of GELU. `out` may be x. A value that is not a number stays one. n = 0 does nothing. O(n).
void BiasGelu(const float* x, const float* bias, int64_t n, float* out);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_GELU_GELU_H_
