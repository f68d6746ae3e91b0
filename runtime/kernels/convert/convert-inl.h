// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_CONVERT_INL_H_
#undef SLUICE_RUNTIME_KERNELS_CONVERT_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_CONVERT_INL_H_
#endif
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/convert/convert.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
HWY_MAYBE_UNUSED static HWY_NOINLINE void ConvertToF32(const void* in, DType type, int64_t n,
                                                       float* out) {
  ToF32(type, in, n, out);
}

HWY_MAYBE_UNUSED static HWY_NOINLINE void ConvertFromF32(const float* HWY_RESTRICT in, int64_t n,
                                                         DType type, void* HWY_RESTRICT out) {
  if (type == DType::kF32) {
    if (n > 0) std::memcpy(out, in, n * sizeof(float));
    return;
  }
  uint16_t* o = static_cast<uint16_t*>(out);
  int64_t i = 0;
  if (type == DType::kBF16) {
    const DF d;
    const hn::RebindToUnsigned<DF> du;
    const hn::Rebind<uint16_t, DF> d16;
    const int64_t N = hn::Lanes(d);
    for (; i + N <= n; i += N) {
      const VF x = hn::LoadU(d, in + i);
      const auto u = hn::BitCast(du, x);
      const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(du, 1u));
      const auto rounded = hn::Add(u, hn::Add(odd, hn::Set(du, 0x7FFFu)));
      const auto quiet = hn::Or(u, hn::Set(du, 0x400000u));
      const auto bits = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), quiet, rounded);
      hn::StoreU(hn::DemoteTo(d16, hn::BitCast(hn::RebindToSigned<DF>(), hn::ShiftRight<16>(bits))),
                 d16, o + i);
    }
    for (; i < n; ++i) o[i] = sluice::F32ToBF16(in[i]);
  } else {
#if HWY_TARGET <= HWY_AVX2  // native conversion; elsewhere the scalar code is the definition
    const DF d;
    const hn::Rebind<hwy::float16_t, DF> d16;
    const int64_t N = hn::Lanes(d);
    for (; i + N <= n; i += N) {
      hn::StoreU(hn::DemoteTo(d16, hn::LoadU(d, in + i)), d16,
                 reinterpret_cast<hwy::float16_t*>(o) + i);
    }
#endif
    for (; i < n; ++i) o[i] = sluice::F32ToF16(in[i]);
  }
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
