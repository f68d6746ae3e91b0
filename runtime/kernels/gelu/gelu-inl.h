// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_GELU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_GELU_INL_H_
#undef SLUICE_RUNTIME_KERNELS_GELU_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_GELU_INL_H_
#endif
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/gelu/gelu.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
HWY_INLINE VF Gelu(VF z) {
  const DF d;
  const VF scale = hn::Set(d, 2.302208198f);  // 2 sqrt(2 / pi) log2 e
  const VF t = hn::Mul(scale, hn::MulAdd(hn::Mul(hn::Mul(z, z), z), hn::Set(d, 0.044715f), z));
  return hn::Mul(z, Logistic2(t));
}
HWY_MAYBE_UNUSED static HWY_NOINLINE void BiasGelu(const float* x, const float* bias, int64_t n,
                                                   float* out) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  int64_t i = 0;
  for (; i + N <= n; i += N)
    hn::StoreU(Gelu(hn::Add(hn::LoadU(d, x + i), hn::LoadU(d, bias + i))), d, out + i);
  for (; i < n; ++i) out[i] = hn::GetLane(Gelu(hn::Set(d, x[i] + bias[i])));
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
