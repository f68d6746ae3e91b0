#ifndef SLUICE_RUNTIME_KERNELS_SOFTMAX_SOFTMAX_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_SOFTMAX_SOFTMAX_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cmath>
#include <cstddef>
#include <limits>

namespace sluice::kernels {
// p[i] = exp(x[i] - lse); returns lse.
inline double SoftmaxReference(const float* x, int64_t n, double* p) {
  double m = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t i = 0; i < n; ++i) m = std::fmax(m, x[i]);
  if (std::isinf(m)) {
    for (int64_t i = 0; i < n; ++i) p[i] = 0;
    return m;
  }
  for (int64_t i = 0; i < n; ++i) sum += p[i] = std::exp(x[i] - m);
  for (int64_t i = 0; i < n; ++i) p[i] /= sum;
  return m + std::log(sum);
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_SOFTMAX_SOFTMAX_REFERENCE_H_
