#include "sluice/runtime/kernels/layer_norm/layer_norm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/layer_norm/layer_norm.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/layer_norm/layer_norm-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(LayerNorm);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
void LayerNorm(const float* x, const float* weight, const float* bias, int64_t n, float eps,
               float* out) {
  HWY_DYNAMIC_DISPATCH(LayerNorm)(x, weight, bias, n, eps, out);
}
}  // namespace sluice::kernels
#endif
