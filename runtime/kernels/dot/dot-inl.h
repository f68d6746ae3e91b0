// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_DOT_INL_H_
#undef SLUICE_RUNTIME_KERNELS_DOT_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_DOT_INL_H_
#endif
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/dot/dot.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
template <DType kType>
HWY_INLINE float DotT(const float* HWY_RESTRICT a, const void* HWY_RESTRICT b, int64_t n) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  VF s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * N <= n; i += 4 * N) {
    s0 = hn::MulAdd(hn::LoadU(d, a + i), LoadF32<kType>(d, b, i), s0);
    s1 = hn::MulAdd(hn::LoadU(d, a + i + N), LoadF32<kType>(d, b, i + N), s1);
    s2 = hn::MulAdd(hn::LoadU(d, a + i + 2 * N), LoadF32<kType>(d, b, i + 2 * N), s2);
    s3 = hn::MulAdd(hn::LoadU(d, a + i + 3 * N), LoadF32<kType>(d, b, i + 3 * N), s3);
  }
  for (; i + N <= n; i += N) s0 = hn::MulAdd(hn::LoadU(d, a + i), LoadF32<kType>(d, b, i), s0);
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  for (; i < n; ++i) sum += a[i] * LoadOne(kType, b, i);
  return sum;
}
HWY_MAYBE_UNUSED static HWY_NOINLINE float Dot(const float* a, const void* b, DType type,
                                               int64_t n) {
  switch (type) {
    case DType::kF32:
      return DotT<DType::kF32>(a, b, n);
    case DType::kBF16:
      return DotT<DType::kBF16>(a, b, n);
    case DType::kF16:
      return DotT<DType::kF16>(a, b, n);
    case DType::kI8:
      return DotT<DType::kI8>(a, b, n);
    case DType::kQ8_0:
      return DotT<DType::kQ8_0>(a, b, n);
    case DType::kQ4_0:
      return DotT<DType::kQ4_0>(a, b, n);
  }
  return 0;
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
