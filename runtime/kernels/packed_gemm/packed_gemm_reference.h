#ifndef SLUICE_RUNTIME_KERNELS_PACKED_GEMM_PACKED_GEMM_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_PACKED_GEMM_PACKED_GEMM_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cmath>
#include <cstdint>

namespace sluice::kernels {
// One row of A [k] by row j of B [n, k].
inline double ProductReference(const float* a, const float* b, int64_t ldb, int64_t j, int64_t k) {
  double sum = 0;
  for (int64_t x = 0; x < k; ++x) sum += static_cast<double>(a[x]) * b[j * ldb + x];
  return sum;
}
inline double GatedReference(double gate, double up) { return gate / (1 + std::exp(-gate)) * up; }
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_PACKED_GEMM_PACKED_GEMM_REFERENCE_H_
