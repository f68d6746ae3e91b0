// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_COMMON_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_COMMON_PANEL_INL_H_
#undef SLUICE_RUNTIME_KERNELS_COMMON_PANEL_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_COMMON_PANEL_INL_H_
#endif
// What several kernels share: element loads, key panels, the register-tiled product, exp2.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "sluice/api/dtype.h"
#include "sluice/runtime/kernels/common/panel.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using sluice::DType;
using sluice::kernels::kPanelKeys;
using sluice::kernels::PanelSource;

// Vectors of at most 16 lanes, so that a 64-key panel is a whole number of them.
using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;

// An f16 in every lane.
template <class D>
HWY_INLINE hn::Vec<D> SetF16(D d, const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
#if HWY_TARGET <= HWY_AVX2
  const hn::Rebind<hwy::float16_t, D> d16;
  const hn::Rebind<uint16_t, D> du;
  return hn::PromoteTo(d, hn::BitCast(d16, hn::Set(du, bits)));
#else
  return hn::Set(d, sluice::F16ToF32(bits));
#endif
}
// Of a type in blocks; i is a multiple of Lanes(d), at most 16.
template <DType kType, class D>
HWY_INLINE hn::Vec<D> LoadFromBlock(D d, const void* p, int64_t i) {
  const hn::RebindToSigned<D> di;
  constexpr int64_t kBytes = kType == DType::kQ8_0 ? sluice::kQ8BlockBytes : sluice::kQ4BlockBytes;
  const auto* block = static_cast<const uint8_t*>(p) + i / sluice::kQuantBlock * kBytes;
  const hn::Vec<D> scale = SetF16(d, block);
  const int64_t at = i % sluice::kQuantBlock;
  if constexpr (kType == DType::kQ8_0) {
    const hn::Rebind<int8_t, D> d8;
    const auto* q = reinterpret_cast<const int8_t*>(block + 2) + at;
    return hn::Mul(scale, hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, q))));
  } else {
    const hn::Rebind<uint8_t, D> d8;
    const auto both = hn::PromoteTo(di, hn::LoadU(d8, block + 2 + at % 16));
    const auto q = at < 16 ? hn::And(both, hn::Set(di, 15)) : hn::ShiftRight<4>(both);
    return hn::Mul(scale, hn::ConvertTo(d, hn::Sub(q, hn::Set(di, 8))));
  }
}
// Lanes(d) consecutive elements as float.
template <DType kType, class D>
HWY_INLINE hn::Vec<D> LoadF32(D d, const void* p, int64_t i) {
  if constexpr (kType == DType::kF32) {
    return hn::LoadU(d, static_cast<const float*>(p) + i);
  } else if constexpr (kType == DType::kBF16) {
    const hn::Rebind<uint16_t, D> d16;
    const hn::RebindToUnsigned<D> du;
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(
                              du, hn::LoadU(d16, static_cast<const uint16_t*>(p) + i))));
  } else if constexpr (kType == DType::kF16) {
#if HWY_TARGET <= HWY_AVX2
    const hn::Rebind<hwy::float16_t, D> d16;
    return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p) + i));
#else  // Highway's emulation loses infinities
    const hn::Rebind<uint16_t, D> d16;
    const hn::RebindToUnsigned<D> du;
    const auto h = hn::PromoteTo(du, hn::LoadU(d16, static_cast<const uint16_t*>(p) + i));
    const auto sign = hn::ShiftLeft<16>(hn::And(h, hn::Set(du, 0x8000u)));
    const auto rest = hn::ShiftLeft<13>(hn::And(h, hn::Set(du, 0x7FFFu)));
    const auto finite = hn::BitCast(du, hn::Mul(hn::BitCast(d, rest), hn::Set(d, 0x1p112f)));
    const auto special = hn::Or(rest, hn::Set(du, 0x7F800000u));
    const auto is_special = hn::Eq(hn::And(h, hn::Set(du, 0x7C00u)), hn::Set(du, 0x7C00u));
    return hn::BitCast(d, hn::Or(sign, hn::IfThenElse(is_special, special, finite)));
#endif
  } else if constexpr (kType == DType::kI8) {
    const hn::Rebind<int8_t, D> d8;
    const hn::RebindToSigned<D> di;
    return hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, static_cast<const int8_t*>(p) + i)));
  } else {
    return LoadFromBlock<kType>(d, p, i);
  }
}
HWY_INLINE float LoadOne(DType type, const void* p, int64_t i) {
  switch (type) {
    case DType::kF32:
      return static_cast<const float*>(p)[i];
    case DType::kBF16:
      return sluice::BF16ToF32(static_cast<const uint16_t*>(p)[i]);
    case DType::kF16:
      return sluice::F16ToF32(static_cast<const uint16_t*>(p)[i]);
    case DType::kI8:
      return static_cast<float>(static_cast<const int8_t*>(p)[i]);
    case DType::kQ8_0:
      return sluice::Q8ToF32(p, i);
    case DType::kQ4_0:
      return sluice::Q4ToF32(p, i);
  }
  return 0;
}

// C[MR, NV vectors] (+)= A[MR, kk] * B[kk, NV vectors]; every accumulator sums k in rising order,
// so a row's bits do not depend on how rows were grouped.
template <int MR, int NV, bool kAccumulate>
HWY_INLINE void MicroTile(const float* HWY_RESTRICT a, int64_t lda, const float* HWY_RESTRICT b,
                          int64_t ldb, int64_t kk, float* HWY_RESTRICT c, int64_t ldc) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  VF acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      acc[r][v] = kAccumulate ? hn::LoadU(d, c + r * ldc + v * N) : hn::Zero(d);
    }
  }
  for (int64_t k = 0; k < kk; ++k) {
    VF bv[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) bv[v] = hn::LoadU(d, b + k * ldb + v * N);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const VF av = hn::Set(d, a[r * lda + k]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = hn::MulAdd(av, bv[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) hn::StoreU(acc[r][v], d, c + r * ldc + v * N);
  }
}
template <int NV, bool kAccumulate>
HWY_INLINE void MicroRows(int64_t mr, const float* HWY_RESTRICT a, int64_t lda,
                          const float* HWY_RESTRICT b, int64_t ldb, int64_t kk,
                          float* HWY_RESTRICT c, int64_t ldc) {
  switch (mr) {
    case 1:
      return MicroTile<1, NV, kAccumulate>(a, lda, b, ldb, kk, c, ldc);
    case 2:
      return MicroTile<2, NV, kAccumulate>(a, lda, b, ldb, kk, c, ldc);
    case 3:
      return MicroTile<3, NV, kAccumulate>(a, lda, b, ldb, kk, c, ldc);
    case 4:
      return MicroTile<4, NV, kAccumulate>(a, lda, b, ldb, kk, c, ldc);
    case 5:
      return MicroTile<5, NV, kAccumulate>(a, lda, b, ldb, kk, c, ldc);
    default:
      return MicroTile<6, NV, kAccumulate>(a, lda, b, ldb, kk, c, ldc);
  }
}
// C[rows, cols] (+)= A[rows, kk] * B[kk, cols]; cols is a multiple of 16.
template <bool kAccumulate>
HWY_NOINLINE void PanelGemm(int64_t rows, const float* HWY_RESTRICT a, int64_t lda,
                            const float* HWY_RESTRICT b, int64_t ldb, int64_t kk, int64_t cols,
                            float* HWY_RESTRICT c, int64_t ldc) {
  const int64_t N = hn::Lanes(DF());
#if HWY_TARGET <= HWY_AVX3
  constexpr int kWide = 4;  // 24 of 32 registers accumulate
#else
  constexpr int kWide = 2;  // 12 of 16
#endif
  int64_t j = 0;
  for (; j + kWide * N <= cols; j += kWide * N) {
    for (int64_t r = 0; r < rows; r += 6) {
      MicroRows<kWide, kAccumulate>(HWY_MIN(rows - r, int64_t{6}), a + r * lda, lda, b + j, ldb, kk,
                                    c + r * ldc + j, ldc);
    }
  }
  for (; j < cols; j += N) {
    for (int64_t r = 0; r < rows; r += 6) {
      MicroRows<1, kAccumulate>(HWY_MIN(rows - r, int64_t{6}), a + r * lda, lda, b + j, ldb, kk,
                                c + r * ldc + j, ldc);
    }
  }
}

HWY_INLINE const uint8_t* SourceRow(const PanelSource& s, int64_t j) {
  return static_cast<const uint8_t*>(s.base) + (s.ids != nullptr ? s.ids[j] : j) * s.row_bytes;
}

template <DType kType>
HWY_INLINE void PackKeysT(const PanelSource& s, int64_t n, int64_t d, float* HWY_RESTRICT kt) {
  if (n < kPanelKeys) std::memset(kt, 0, d * kPanelKeys * sizeof(float));
  int64_t j = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> d4;
  const hn::RepartitionToWide<decltype(d4)> d2;
  const auto as2 = [&](hn::Vec<decltype(d4)> v) { return hn::BitCast(d2, v); };
  for (; j + 4 <= n; j += 4) {
    const uint8_t* k0 = SourceRow(s, j);
    const uint8_t* k1 = SourceRow(s, j + 1);
    const uint8_t* k2 = SourceRow(s, j + 2);
    const uint8_t* k3 = SourceRow(s, j + 3);
    int64_t i = 0;
    for (; i + 4 <= d; i += 4) {
      const auto r0 = LoadF32<kType>(d4, k0, i), r1 = LoadF32<kType>(d4, k1, i);
      const auto r2 = LoadF32<kType>(d4, k2, i), r3 = LoadF32<kType>(d4, k3, i);
      const auto lo01 = as2(hn::InterleaveLower(d4, r0, r1)),
                 lo23 = as2(hn::InterleaveLower(d4, r2, r3));
      const auto hi01 = as2(hn::InterleaveUpper(d4, r0, r1)),
                 hi23 = as2(hn::InterleaveUpper(d4, r2, r3));
      float* out = kt + i * kPanelKeys + j;
      hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, lo01, lo23)), d4, out);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, lo01, lo23)), d4, out + kPanelKeys);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, hi01, hi23)), d4, out + 2 * kPanelKeys);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, hi01, hi23)), d4, out + 3 * kPanelKeys);
    }
    for (; i < d; ++i) {
      kt[i * kPanelKeys + j] = LoadOne(kType, k0, i);
      kt[i * kPanelKeys + j + 1] = LoadOne(kType, k1, i);
      kt[i * kPanelKeys + j + 2] = LoadOne(kType, k2, i);
      kt[i * kPanelKeys + j + 3] = LoadOne(kType, k3, i);
    }
  }
#endif
  for (; j < n; ++j) {
    const uint8_t* k = SourceRow(s, j);
    for (int64_t i = 0; i < d; ++i) kt[i * kPanelKeys + j] = LoadOne(kType, k, i);
  }
}
HWY_INLINE void PackKeys(const PanelSource& s, int64_t n, int64_t d, float* kt) {
  switch (s.dtype) {
    case DType::kF32:
      return PackKeysT<DType::kF32>(s, n, d, kt);
    case DType::kBF16:
      return PackKeysT<DType::kBF16>(s, n, d, kt);
    case DType::kF16:
      return PackKeysT<DType::kF16>(s, n, d, kt);
    case DType::kI8:
      return PackKeysT<DType::kI8>(s, n, d, kt);
    case DType::kQ8_0:
      return PackKeysT<DType::kQ8_0>(s, n, d, kt);
    case DType::kQ4_0:
      return PackKeysT<DType::kQ4_0>(s, n, d, kt);
  }
}

// n floats from any element type.
template <DType kType>
HWY_INLINE void ToF32T(const void* in, int64_t n, float* HWY_RESTRICT out) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  int64_t i = 0;
  for (; i + N <= n; i += N) hn::StoreU(LoadF32<kType>(d, in, i), d, out + i);
  for (; i < n; ++i) out[i] = LoadOne(kType, in, i);
}
HWY_INLINE void ToF32(DType type, const void* in, int64_t n, float* out) {
  switch (type) {
    case DType::kF32:
      return ToF32T<DType::kF32>(in, n, out);
    case DType::kBF16:
      return ToF32T<DType::kBF16>(in, n, out);
    case DType::kF16:
      return ToF32T<DType::kF16>(in, n, out);
    case DType::kI8:
      return ToF32T<DType::kI8>(in, n, out);
    case DType::kQ8_0:
      return ToF32T<DType::kQ8_0>(in, n, out);
    case DType::kQ4_0:
      return ToF32T<DType::kQ4_0>(in, n, out);
  }
}

// 2^x for x <= 0 to about 1 ulp; exactly 0 below -126 (so for -inf), exactly 1 at 0; NaN stays NaN.
HWY_INLINE VF Exp2(VF x) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  const auto tiny = hn::Lt(x, hn::Set(d, -126.0f));
  const VF xc = hn::Max(x, hn::Set(d, -126.0f));
  // Adding this rounds to the nearest whole number, which then lies in the sum's last bits.
  const VF magic = hn::Set(d, 0x1.8p23f);
  const VF whole = hn::Add(xc, magic);
  const VF f = hn::Sub(xc, hn::Sub(whole, magic));
  // Taylor of 2^f at 0 with its last two terms adjusted for |f| <= 1/2.
  VF p = hn::Set(d, 1.5353362e-4f);
  p = hn::MulAdd(p, f, hn::Set(d, 1.3398874e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 9.6184373e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.5503324e-2f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.4022648e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.9314720e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const auto e = hn::ShiftLeft<23>(hn::BitCast(di, whole));
  const VF y = hn::IfThenZeroElse(tiny, hn::BitCast(d, hn::Add(hn::BitCast(di, p), e)));
  return hn::IfThenElse(hn::Eq(x, x), y, x);
}

// 1 / (1 + 2^-t): 2^-|t| cannot overflow; for negative t it is the same fraction turned over.
HWY_INLINE VF Logistic2(VF t) {
  const DF d;
  const VF one = hn::Set(d, 1.0f);
  const VF e = Exp2(hn::Neg(hn::Abs(t)));
  return hn::Div(hn::IfThenElse(hn::Lt(t, hn::Zero(d)), e, one), hn::Add(one, e));
}

// Mask of vector lanes [at, at + Lanes) from a 64-bit word.
HWY_INLINE hn::Mask<DF> LanesMask(uint64_t word, int64_t at) {
  const uint64_t bits = word >> at;
  uint8_t bytes[8];
  std::memcpy(bytes, &bits, 8);
  const DF d;
  if (hn::Lanes(d) < 8) bytes[0] = static_cast<uint8_t>(bytes[0] & ((1u << hn::Lanes(d)) - 1));
  return hn::LoadMaskBits(d, bytes);
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
