#include "sluice/runtime/kernels/gemm/gemm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/gemm/gemm.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/gemm/gemm-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(GemmNT);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
void GemmNT(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t m, int64_t n,
            int64_t k, float* c, int64_t ldc, float* scratch) {
  HWY_DYNAMIC_DISPATCH(GemmNT)(a, lda, b, ldb, m, n, k, c, ldc, scratch);
}
}  // namespace sluice::kernels
#endif
