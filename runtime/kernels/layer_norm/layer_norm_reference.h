#ifndef SLUICE_RUNTIME_KERNELS_LAYER_NORM_LAYER_NORM_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_LAYER_NORM_LAYER_NORM_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cmath>
#include <cstddef>

namespace sluice::kernels {
inline void LayerNormReference(const float* x, const float* weight, const float* bias, int64_t n,
                               double eps, double* out) {
  double mean = 0, square = 0;
  for (int64_t i = 0; i < n; ++i) mean += static_cast<double>(x[i]) / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
  for (int64_t i = 0; i < n; ++i)
    out[i] = (x[i] - mean) / std::sqrt(square / static_cast<double>(n) + eps) * weight[i] + bias[i];
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_LAYER_NORM_LAYER_NORM_REFERENCE_H_
