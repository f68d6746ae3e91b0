#ifndef SLUICE_RUNTIME_KERNELS_LAYER_NORM_LAYER_NORM_H_
#define SLUICE_RUNTIME_KERNELS_LAYER_NORM_LAYER_NORM_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
// out[i] = (x[i] - mean) / sqrt(variance + eps) * weight[i] + bias[i]. `out` may be x. n = 0 does
// nothing. O(n).
void LayerNorm(const float* x, const float* weight, const float* bias, int64_t n, float eps,
               float* out);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_LAYER_NORM_LAYER_NORM_H_
