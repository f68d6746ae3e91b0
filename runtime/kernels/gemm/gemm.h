#ifndef SLUICE_RUNTIME_KERNELS_GEMM_GEMM_H_
#define SLUICE_RUNTIME_KERNELS_GEMM_GEMM_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
// C[m, n] = A[m, k] * B[n, k]^T, fp32, row strides in elements: scores of a few rows against many.
// For large products use a BLAS. `scratch`: GemmScratchFloats(k). O(m n k).
inline constexpr int64_t GemmScratchFloats(int64_t k) { return 64 * k + 64 * 64; }
void GemmNT(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m, int64_t n,
            int64_t k, float* c, int64_t ldc, float* scratch);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_GEMM_GEMM_H_
