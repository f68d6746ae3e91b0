#include "sluice/runtime/kernels/top_p/top_p.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/top_p/top_p.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/top_p/top_p-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(TopP);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
int64_t TopP(const float* x, int64_t n, float p, uint32_t* index, void* scratch) {
  return HWY_DYNAMIC_DISPATCH(TopP)(x, n, p, index, scratch);
}
}  // namespace sluice::kernels
#endif
