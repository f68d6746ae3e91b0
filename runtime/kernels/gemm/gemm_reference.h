#ifndef SLUICE_RUNTIME_KERNELS_GEMM_GEMM_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_GEMM_GEMM_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cstddef>

namespace sluice::kernels {
inline void GemmNTReference(const float* a, size_t lda, const float* b, size_t ldb, size_t m, size_t n, size_t k,
                            double* c, size_t ldc) {
  for (size_t i = 0; i < m; ++i) {
    for (size_t j = 0; j < n; ++j) {
      double sum = 0;
      for (size_t x = 0; x < k; ++x) sum += static_cast<double>(a[i * lda + x]) * b[j * ldb + x];
      c[i * ldc + j] = sum;
    }
  }
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_GEMM_GEMM_REFERENCE_H_
