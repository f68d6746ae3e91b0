// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_ROPE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_ROPE_INL_H_
#undef SLUICE_RUNTIME_KERNELS_ROPE_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_ROPE_INL_H_
#endif
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/rope/rope.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
HWY_MAYBE_UNUSED static HWY_NOINLINE void RopeRotate(float* HWY_RESTRICT x, int64_t dim,
                                                     const float* HWY_RESTRICT c,
                                                     const float* HWY_RESTRICT s,
                                                     sluice::kernels::RopeLayout layout) {
  const int64_t half = dim / 2;
  int64_t i = 0;
  if (layout == sluice::kernels::RopeLayout::kHalves) {
    const DF d;
    const int64_t N = hn::Lanes(d);
    for (; i + N <= half; i += N) {
      const VF a = hn::LoadU(d, x + i), b = hn::LoadU(d, x + half + i), vc = hn::LoadU(d, c + i),
               vs = hn::LoadU(d, s + i);
      hn::StoreU(hn::NegMulAdd(b, vs, hn::Mul(a, vc)), d, x + i);
      hn::StoreU(hn::MulAdd(a, vs, hn::Mul(b, vc)), d, x + half + i);
    }
    for (; i < half; ++i) {
      const float a = x[i], b = x[half + i];
      x[i] = a * c[i] - b * s[i];
      x[half + i] = a * s[i] + b * c[i];
    }
    return;
  }
#if HWY_TARGET != HWY_SCALAR
  const DF d;
  const int64_t N = hn::Lanes(d);
  for (; i + N <= half; i += N) {
    VF a, b;
    hn::LoadInterleaved2(d, x + 2 * i, a, b);
    const VF vc = hn::LoadU(d, c + i), vs = hn::LoadU(d, s + i);
    hn::StoreInterleaved2(hn::NegMulAdd(b, vs, hn::Mul(a, vc)), hn::MulAdd(a, vs, hn::Mul(b, vc)),
                          d, x + 2 * i);
  }
#endif
  for (; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * c[i] - b * s[i];
    x[2 * i + 1] = a * s[i] + b * c[i];
  }
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
