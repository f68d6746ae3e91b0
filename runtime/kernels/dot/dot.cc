#include "sluice/runtime/kernels/dot/dot.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/dot/dot.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/dot/dot-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(Dot);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
float Dot(const float* a, const void* b, DType b_type, int64_t n) {
  return HWY_DYNAMIC_DISPATCH(Dot)(a, b, b_type, n);
}
}  // namespace sluice::kernels
#endif
