// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_RMS_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_RMS_NORM_INL_H_
#undef SLUICE_RUNTIME_KERNELS_RMS_NORM_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_RMS_NORM_INL_H_
#endif
#include <cmath>
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/rms_norm/rms_norm.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
HWY_MAYBE_UNUSED static HWY_NOINLINE void RmsNorm(const float* x, const float* w, int64_t n,
                                                  float eps, float* out) {
  if (n == 0) return;
  const DF d;
  const int64_t N = hn::Lanes(d);
  VF s0 = hn::Zero(d), s1 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * N <= n; i += 2 * N) {
    const VF a = hn::LoadU(d, x + i), b = hn::LoadU(d, x + i + N);
    s0 = hn::MulAdd(a, a, s0);
    s1 = hn::MulAdd(b, b, s1);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s1)));
  for (; i < n; ++i) sum += x[i] * x[i];
  const float r = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
  const VF vr = hn::Set(d, r);
  for (i = 0; i + N <= n; i += N)
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), vr), hn::LoadU(d, w + i)), d, out + i);
  for (; i < n; ++i) out[i] = x[i] * r * w[i];
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
