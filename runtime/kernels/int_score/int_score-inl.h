// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_INT_SCORE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_INT_SCORE_INL_H_
#undef SLUICE_RUNTIME_KERNELS_INT_SCORE_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_INT_SCORE_INL_H_
#endif
#include <cmath>
#include <cstring>

#include "hwy/highway.h"
#include "sluice/runtime/kernels/int_score/int_score.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using sluice::kernels::IntGroupBytes;
using sluice::kernels::IntWidth;
using sluice::kernels::KeyBits;
using sluice::kernels::kIntGroup;

HWY_MAYBE_UNUSED static HWY_NOINLINE float QuantiseInt(const float* x, int64_t n, int32_t limit,
                                                       int8_t* out) {
  const hn::CappedTag<float, 16> d;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const int64_t N = hn::Lanes(d);
  auto most = hn::Zero(d);
  auto nans = hn::Zero(d);  // of what is no finite number
  int64_t i = 0;
  for (; i + N <= n; i += N) {
    const auto v = hn::LoadU(d, x + i);
    most = hn::Max(most, hn::Abs(v));
    nans = hn::Add(nans, hn::Sub(v, v));
  }
  float largest = hn::GetLane(hn::MaxOfLanes(d, most));
  float nan = hn::GetLane(hn::SumOfLanes(d, nans));
  for (; i < n; ++i) {
    largest = HWY_MAX(largest, std::fabs(x[i]));
    nan += x[i] - x[i];
  }
  const float scale = largest / static_cast<float>(limit) + nan;
  if (!(scale > 0)) {
    std::memset(out, 0, n);
    return scale;
  }
  for (i = 0; i + N <= n; i += N) {
    const auto whole = hn::NearestInt(hn::Div(hn::LoadU(d, x + i), hn::Set(d, scale)));
    hn::StoreU(hn::DemoteTo(d8, whole), d8, out + i);
  }
  for (; i < n; ++i) out[i] = static_cast<int8_t>(std::nearbyintf(x[i] / scale));
  return scale;
}

#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
// x86 multiplies neighbouring pairs of 16-bit elements and adds the two: two sums a key and quad.
using DI16 = hn::CappedTag<int16_t, 32>;
constexpr int kSums = 2;
constexpr int kIntVectors = 64 / hn::MaxLanes(DI16());  // a quad of a group
constexpr int kIntRows = HWY_TARGET <= HWY_AVX3 ? 8 : (HWY_TARGET <= HWY_AVX2 ? 3 : 1);

// sum [rows, 16 keys, kSums] = q [rows, width] . a group of keys that are `bits` wide and unsigned.
template <KeyBits kBits, int kRows>
HWY_INLINE void GroupSums(const int8_t* HWY_RESTRICT q, int64_t width,
                          const uint8_t* HWY_RESTRICT group, int32_t* HWY_RESTRICT sum) {
  const DI16 d16;
  const hn::RepartitionToWide<DI16> d32;
  const hn::Rebind<uint8_t, DI16> du8;
  const hn::Rebind<int8_t, DI16> d8;
  const hn::Repartition<int32_t, decltype(d8)> quads;
  const int64_t lanes = hn::Lanes(d16);
  constexpr bool kHalves = kBits == KeyBits::k4;
  hn::Vec<decltype(d32)> acc[kRows][kIntVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kIntVectors; ++v) acc[r][v] = hn::Zero(d32);
  }
  for (int64_t at = 0; at < width; at += 4) {
    const uint8_t* from = group + (kHalves ? at / 8 : at / 4) * 64;
    hn::Vec<DI16> k[kIntVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kIntVectors; ++v) {
      k[v] = hn::PromoteTo(d16, hn::LoadU(du8, from + v * lanes));
      if (kHalves) k[v] = at % 8 == 0 ? hn::And(k[v], hn::Set(d16, 15)) : hn::ShiftRight<4>(k[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      std::memcpy(&four, q + r * width + at, sizeof four);
      const auto qv = hn::PromoteTo(d16, hn::BitCast(d8, hn::Set(quads, four)));
      hn::Vec<decltype(d32)> unused = hn::Zero(d32);
#pragma GCC unroll 8
      for (int v = 0; v < kIntVectors; ++v)
        acc[r][v] = hn::ReorderWidenMulAccumulate(d32, qv, k[v], acc[r][v], unused);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kIntVectors; ++v)
      hn::StoreU(acc[r][v], d32, sum + r * kIntGroup * kSums + v * lanes / 2);
  }
}
#else
// Elsewhere the order of pairs is not given: plain loops.
constexpr int kSums = 1;
constexpr int kIntRows = 1;

template <KeyBits kBits, int kRows>
HWY_INLINE void GroupSums(const int8_t* HWY_RESTRICT q, int64_t width,
                          const uint8_t* HWY_RESTRICT group, int32_t* HWY_RESTRICT sum) {
  constexpr bool kHalves = kBits == KeyBits::k4;
  for (int64_t j = 0; j < kIntGroup; ++j) sum[j] = 0;
  for (int64_t at = 0; at < width; ++at) {
    const int64_t quad = at / 4;
    const uint8_t* from = group + (kHalves ? quad / 2 : quad) * 64 + at % 4;
    for (int64_t j = 0; j < kIntGroup; ++j) {
      const int32_t byte = from[j * 4];
      const int32_t key = !kHalves ? byte : (quad % 2 == 0 ? byte & 15 : byte >> 4);
      sum[j] += int32_t{q[at]} * key;
    }
  }
}
#endif

// Calls body(row, dots [16]) for every row, whose products with a group of keys those are.
// `shift` [rows]: what the keys' being unsigned adds to a row's.
template <KeyBits kBits, class Body>
HWY_INLINE void EachRow(const int8_t* q, int64_t rows, int64_t width, const uint8_t* group,
                        Body&& body) {
  HWY_ALIGN int32_t sum[kIntRows * kIntGroup * kSums];
  HWY_ALIGN int32_t dot[kIntGroup];
  constexpr int32_t kOffset = kBits == KeyBits::k8 ? 128 : 8;
  for (int64_t r = 0; r < rows;) {
    const int64_t some = rows - r >= kIntRows ? kIntRows : 1;
    if (some == kIntRows) {
      GroupSums<kBits, kIntRows>(q + r * width, width, group, sum);
    } else {
      GroupSums<kBits, 1>(q + r * width, width, group, sum);
    }
    for (int64_t i = 0; i < some; ++i, ++r) {
      int32_t of_query = 0;
      for (int64_t x = 0; x < width; ++x) of_query += q[r * width + x];
      const int32_t* s = sum + i * kIntGroup * kSums;
      for (int64_t j = 0; j < kIntGroup; ++j) {
        int32_t all = -kOffset * of_query;
        for (int64_t e = 0; e < kSums; ++e) all += s[j * kSums + e];
        dot[j] = all;
      }
      body(r, dot);
    }
  }
}
// Calls body(group, first, last, to) for the groups of keys [begin, begin + n): keys [first, last)
// of the group come out at `to`.
template <class Body>
HWY_INLINE void EachGroup(int64_t begin, int64_t n, Body&& body) {
  for (int64_t at = begin; at < begin + n;) {
    const int64_t group = at / kIntGroup;
    const int64_t end = HWY_MIN(begin + n, (group + 1) * kIntGroup);
    body(group, at - group * kIntGroup, end - group * kIntGroup, at - begin);
    at = end;
  }
}

template <KeyBits kBits>
HWY_INLINE void IntDotsT(const int8_t* q, int64_t rows, int64_t dim, const uint8_t* packed,
                         int64_t begin, int64_t n, int32_t* dot) {
  EachGroup(begin, n, [&](int64_t group, int64_t first, int64_t last, int64_t to) {
    EachRow<kBits>(q, rows, IntWidth(kBits, dim), packed + group * IntGroupBytes(kBits, dim),
                   [&](int64_t r, const int32_t* of_row) {
                     std::memcpy(dot + r * n + to, of_row + first, (last - first) * sizeof *dot);
                   });
  });
}
HWY_MAYBE_UNUSED static HWY_NOINLINE void IntDots(KeyBits bits, const int8_t* q, int64_t rows,
                                                  int64_t dim, const uint8_t* packed, int64_t begin,
                                                  int64_t n, int32_t* dot) {
  if (bits == KeyBits::k8) return IntDotsT<KeyBits::k8>(q, rows, dim, packed, begin, n, dot);
  IntDotsT<KeyBits::k4>(q, rows, dim, packed, begin, n, dot);
}

template <KeyBits kBits>
HWY_INLINE void IntScoreT(const int8_t* q, const float* weight, int64_t heads, int64_t dim,
                          const uint8_t* packed, const float* key_scale, int64_t begin, int64_t n,
                          float* score) {
  EachGroup(begin, n, [&](int64_t group, int64_t first, int64_t last, int64_t to) {
    HWY_ALIGN float sum[kIntGroup] = {};
    EachRow<kBits>(q, heads, IntWidth(kBits, dim), packed + group * IntGroupBytes(kBits, dim),
                   [&](int64_t j, const int32_t* dot) {
                     for (int64_t c = 0; c < kIntGroup; ++c) {
                       const int32_t relu = dot[c] > 0 ? dot[c] : 0;
                       sum[c] += weight[j] * static_cast<float>(relu);
                     }
                   });
    for (int64_t c = first; c < last; ++c)
      score[to + c - first] = sum[c] * key_scale[group * kIntGroup + c];
  });
}
HWY_MAYBE_UNUSED static HWY_NOINLINE void IntScore(KeyBits bits, const int8_t* q,
                                                   const float* weight, int64_t heads, int64_t dim,
                                                   const uint8_t* packed, const float* key_scale,
                                                   int64_t begin, int64_t n, float* score) {
  if (bits == KeyBits::k8)
    return IntScoreT<KeyBits::k8>(q, weight, heads, dim, packed, key_scale, begin, n, score);
  IntScoreT<KeyBits::k4>(q, weight, heads, dim, packed, key_scale, begin, n, score);
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
