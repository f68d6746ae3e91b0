#ifndef SLUICE_RUNTIME_KERNELS_GEMM_GEMM_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_GEMM_GEMM_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cstdint>

namespace sluice::kernels {
inline void GemmNTReference(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m,
                            int64_t n, int64_t k, double* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t x = 0; x < k; ++x) sum += static_cast<double>(a[i * lda + x]) * b[j * ldb + x];
      c[i * ldc + j] = sum;
    }
  }
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_GEMM_GEMM_REFERENCE_H_
