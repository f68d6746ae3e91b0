// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_POOL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_POOL_INL_H_
#undef SLUICE_RUNTIME_KERNELS_POOL_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_POOL_INL_H_
#endif
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/pool/pool.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
template <DType kType, class Op>
HWY_INLINE void PoolT(const void* in, int64_t stride, int64_t n, int64_t dim,
                      float* HWY_RESTRICT out, Op op) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  int64_t i = 0;
  for (; i + N <= dim; i += N) {
    VF acc = LoadF32<kType>(d, in, i);
    for (int64_t j = 1; j < n; ++j) acc = op(acc, LoadF32<kType>(d, in, j * stride + i));
    hn::StoreU(acc, d, out + i);
  }
  const hn::CappedTag<float, 1> d1;
  for (; i < dim; ++i) {
    auto acc = hn::Set(d1, LoadOne(kType, in, i));
    for (int64_t j = 1; j < n; ++j) acc = op(acc, hn::Set(d1, LoadOne(kType, in, j * stride + i)));
    out[i] = hn::GetLane(acc);
  }
}
template <DType kType>
HWY_INLINE void PoolKindT(sluice::kernels::PoolKind kind, const void* in, int64_t stride, int64_t n,
                          int64_t dim, float* out) {
  using sluice::kernels::PoolKind;
  if (kind == PoolKind::kMax)
    return PoolT<kType>(in, stride, n, dim, out, [](auto a, auto b) HWY_ATTR {
      return hn::IfThenElse(hn::Or(hn::Gt(b, a), hn::IsNaN(b)), b, a);
    });
  if (kind == PoolKind::kMin)
    return PoolT<kType>(in, stride, n, dim, out, [](auto a, auto b) HWY_ATTR {
      return hn::IfThenElse(hn::Or(hn::Lt(b, a), hn::IsNaN(b)), b, a);
    });
  PoolT<kType>(in, stride, n, dim, out, [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); });
  const float scale = 1.0f / static_cast<float>(n);
  for (int64_t i = 0; i < dim; ++i) out[i] *= scale;
}
HWY_MAYBE_UNUSED static HWY_NOINLINE void Pool(sluice::kernels::PoolKind kind, const void* in,
                                               DType type, int64_t stride, int64_t n, int64_t dim,
                                               float* out) {
  if (n == 0) {
    for (int64_t i = 0; i < dim; ++i) out[i] = 0;
    return;
  }
  switch (type) {
    case DType::kF32:
      return PoolKindT<DType::kF32>(kind, in, stride, n, dim, out);
    case DType::kBF16:
      return PoolKindT<DType::kBF16>(kind, in, stride, n, dim, out);
    case DType::kF16:
      return PoolKindT<DType::kF16>(kind, in, stride, n, dim, out);
    case DType::kI8:
      return PoolKindT<DType::kI8>(kind, in, stride, n, dim, out);
    case DType::kQ8_0:
      return PoolKindT<DType::kQ8_0>(kind, in, stride, n, dim, out);
    case DType::kQ4_0:
      return PoolKindT<DType::kQ4_0>(kind, in, stride, n, dim, out);
  }
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
