#include "sluice/runtime/kernels/rope/rope.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/rope/rope.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/rope/rope-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(RopeRotate);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
void RopeAngles(double position, double base, int64_t d, float* cos, float* sin) {
  for (int64_t i = 0; i < d / 2; ++i) {
    const double angle =
        position * std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(d));
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
  }
}
void RopeRotate(float* x, int64_t d, const float* cos, const float* sin, RopeLayout layout) {
  HWY_DYNAMIC_DISPATCH(RopeRotate)(x, d, cos, sin, layout);
}
}  // namespace sluice::kernels
#endif
