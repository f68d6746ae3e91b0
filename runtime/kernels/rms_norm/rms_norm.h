#ifndef SLUICE_RUNTIME_KERNELS_RMS_NORM_RMS_NORM_H_
#define SLUICE_RUNTIME_KERNELS_RMS_NORM_RMS_NORM_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
// out[i] = x[i] * weight[i] / sqrt(mean(x^2) + eps). `out` may be x. n = 0 does nothing. O(n).
void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* out);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_RMS_NORM_RMS_NORM_H_
