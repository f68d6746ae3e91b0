#include "sluice/runtime/kernels/gelu/gelu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/gelu/gelu.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/gelu/gelu-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(BiasGelu);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
void BiasGelu(const float* x, const float* bias, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(BiasGelu)(x, bias, n, out);
}
}  // namespace sluice::kernels
#endif
