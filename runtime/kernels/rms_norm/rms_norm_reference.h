#ifndef SLUICE_RUNTIME_KERNELS_RMS_NORM_RMS_NORM_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_RMS_NORM_RMS_NORM_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cmath>
#include <cstddef>

namespace sluice::kernels {
inline void RmsNormReference(const float* x, const float* weight, int64_t n, double eps,
                             double* out) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  for (int64_t i = 0; i < n; ++i)
    out[i] = x[i] * weight[i] / std::sqrt(sum / static_cast<double>(n) + eps);
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_RMS_NORM_RMS_NORM_REFERENCE_H_
