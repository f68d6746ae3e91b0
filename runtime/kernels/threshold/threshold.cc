#include "sluice/runtime/kernels/threshold/threshold.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/threshold/threshold.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/threshold/threshold-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(ThresholdCompress);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
int64_t ThresholdCompress(const float* x, int64_t n, float tau, uint32_t* index) {
  return HWY_DYNAMIC_DISPATCH(ThresholdCompress)(x, n, tau, index);
}
}  // namespace sluice::kernels
#endif
