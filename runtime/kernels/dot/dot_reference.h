#ifndef SLUICE_RUNTIME_KERNELS_DOT_DOT_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_DOT_DOT_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cstdint>

namespace sluice::kernels {
template <class Get>
double DotReference(const float* a, Get&& b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b(i);
  return sum;
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_DOT_DOT_REFERENCE_H_
