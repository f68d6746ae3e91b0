#include "sluice/runtime/kernels/sparse_linear/sparse_linear.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/sparse_linear/sparse_linear.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/sparse_linear/sparse_linear-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(SparseGemv);
HWY_EXPORT(SparsePack);
HWY_EXPORT(SparsePanel);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
void SparseGemv(const SparseView& w, int64_t begin, int64_t end, const float* x, int64_t ldx,
                int64_t n, float* y, int64_t ldy, bool accumulate) {
  HWY_DYNAMIC_DISPATCH(SparseGemv)(w, begin, end, x, ldx, n, y, ldy, accumulate);
}
void SparsePack(const float* x, int64_t ldx, int64_t n, int64_t cols, float* panel) {
  HWY_DYNAMIC_DISPATCH(SparsePack)(x, ldx, n, cols, panel);
}
void SparsePanel(const SparseView& w, int64_t begin, int64_t end, const float* panel, int64_t n,
                 float* y, int64_t ldy, bool accumulate, float* scratch) {
  HWY_DYNAMIC_DISPATCH(SparsePanel)(w, begin, end, panel, n, y, ldy, accumulate, scratch);
}
}  // namespace sluice::kernels
#endif
