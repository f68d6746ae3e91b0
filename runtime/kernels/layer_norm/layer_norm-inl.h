// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_LAYER_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_LAYER_NORM_INL_H_
#undef SLUICE_RUNTIME_KERNELS_LAYER_NORM_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_LAYER_NORM_INL_H_
#endif
#include <cmath>
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/layer_norm/layer_norm.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
HWY_MAYBE_UNUSED static HWY_NOINLINE void LayerNorm(const float* x, const float* w, const float* b,
                                                    int64_t n, float eps, float* out) {
  if (n == 0) return;
  const DF d;
  const int64_t N = hn::Lanes(d);
  VF s = hn::Zero(d);
  int64_t i = 0;
  for (; i + N <= n; i += N) s = hn::Add(hn::LoadU(d, x + i), s);
  float sum = hn::GetLane(hn::SumOfLanes(d, s));
  for (; i < n; ++i) sum += x[i];
  const float mean = sum / static_cast<float>(n);
  const VF vm = hn::Set(d, mean);
  s = hn::Zero(d);
  for (i = 0; i + N <= n; i += N) {
    const VF c = hn::Sub(hn::LoadU(d, x + i), vm);
    s = hn::MulAdd(c, c, s);
  }
  float square = hn::GetLane(hn::SumOfLanes(d, s));
  for (; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
  const float r = 1.0f / std::sqrt(square / static_cast<float>(n) + eps);
  const VF vr = hn::Set(d, r);
  for (i = 0; i + N <= n; i += N)
    hn::StoreU(hn::MulAdd(hn::Mul(hn::Sub(hn::LoadU(d, x + i), vm), vr), hn::LoadU(d, w + i),
                          hn::LoadU(d, b + i)),
               d, out + i);
  for (; i < n; ++i) out[i] = (x[i] - mean) * r * w[i] + b[i];
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
