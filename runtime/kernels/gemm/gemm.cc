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
void GemmNT(const float* a, size_t lda, const float* b, size_t ldb, size_t m, size_t n, size_t k, float* c, size_t ldc,
            float* scratch) {
  HWY_DYNAMIC_DISPATCH(GemmNT)(a, lda, b, ldb, m, n, k, c, ldc, scratch);
}
}  // namespace sluice::kernels
#endif
