#ifndef SLUICE_RUNTIME_KERNELS_GEMM_GEMM_H_
#define SLUICE_RUNTIME_KERNELS_GEMM_GEMM_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
// C[m, n] = A[m, k] * B[n, k]^T, fp32, row strides in elements: scores of a few rows against many. For large
// products use a BLAS. `scratch`: GemmScratchFloats(k). O(m n k).
inline constexpr size_t GemmScratchFloats(size_t k) { return 64 * k + 64 * 64; }
void GemmNT(const float* a, size_t lda, const float* b, size_t ldb, size_t m, size_t n, size_t k, float* c, size_t ldc,
            float* scratch);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_GEMM_GEMM_H_
