#include "sluice/runtime/kernels/top_k/top_k.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/top_k/top_k.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/top_k/top_k-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(TopK);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
TopKCount TopK(const float* x, int64_t n, int64_t k, uint32_t* index, void* scratch) {
  return HWY_DYNAMIC_DISPATCH(TopK)(x, n, k, index, scratch);
}
}  // namespace sluice::kernels
#endif
