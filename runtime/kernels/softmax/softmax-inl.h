// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_SOFTMAX_INL_H_
#undef SLUICE_RUNTIME_KERNELS_SOFTMAX_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_SOFTMAX_INL_H_
#endif
#include <cmath>
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/softmax/softmax.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
template <bool kStore>
HWY_INLINE float SoftmaxT(float* out, const float* x, int64_t n) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  if (n == 0) return -HUGE_VALF;
  VF top = hn::Set(d, -HUGE_VALF), nan = hn::Zero(d);
  int64_t i = 0;
  for (; i + N <= n; i += N) {
    const VF v = hn::LoadU(d, x + i);
    top = hn::Max(top, v);
    nan = hn::Add(nan, hn::IfThenElseZero(hn::IsNaN(v), hn::Set(d, 1.0f)));
  }
  float m = hn::GetLane(hn::MaxOfLanes(d, top));
  bool bad = hn::GetLane(hn::SumOfLanes(d, nan)) != 0;
  for (; i < n; ++i) {
    if (x[i] != x[i]) bad = true;
    if (x[i] > m) m = x[i];
  }
  if (bad) {
    const float q = static_cast<float>(NAN);
    if constexpr (kStore)
      for (int64_t j = 0; j < n; ++j) out[j] = q;
    return q;
  }
  if (m == -HUGE_VALF) {
    if constexpr (kStore)
      for (int64_t j = 0; j < n; ++j) out[j] = 0;
    return m;
  }
  const VF vm = hn::Set(d, m), log2e = hn::Set(d, 1.44269504f);
  VF sum = hn::Zero(d);
  for (i = 0; i < n; i += N) {
    const int64_t left = HWY_MIN(N, n - i);
    HWY_ALIGN float lanes[16];
    VF v;
    if (left == N) {
      v = hn::LoadU(d, x + i);
    } else {
      for (int64_t j = 0; j < N; ++j) lanes[j] = j < left ? x[i + j] : -HUGE_VALF;
      v = hn::Load(d, lanes);
    }
    const VF e = Exp2(hn::Mul(hn::Sub(v, vm), log2e));
    sum = hn::Add(sum, e);
    if constexpr (kStore) {
      if (left == N) {
        hn::StoreU(e, d, out + i);
      } else {
        hn::Store(e, d, lanes);
        for (int64_t j = 0; j < left; ++j) out[i + j] = lanes[j];
      }
    }
  }
  const float total = hn::GetLane(hn::SumOfLanes(d, sum));
  if constexpr (kStore) {
    const float scale = 1.0f / total;
    for (i = 0; i + N <= n; i += N)
      hn::StoreU(hn::Mul(hn::LoadU(d, out + i), hn::Set(d, scale)), d, out + i);
    for (; i < n; ++i) out[i] *= scale;
  }
  return m + std::log(total);
}
HWY_MAYBE_UNUSED static HWY_NOINLINE float Softmax(float* x, int64_t n) {
  return SoftmaxT<true>(x, x, n);
}
HWY_MAYBE_UNUSED static HWY_NOINLINE float LogSumExp(const float* x, int64_t n) {
  return SoftmaxT<false>(nullptr, x, n);
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
