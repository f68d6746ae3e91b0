// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_ATTENTION_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_ATTENTION_ROWS_INL_H_
#undef SLUICE_RUNTIME_KERNELS_ATTENTION_ROWS_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_ATTENTION_ROWS_INL_H_
#endif
// The step for a few rows. Packing a panel costs as much as multiplying it with some twenty rows;
// for fewer, keys and values are multiplied as they are read. Lanes run along the head's width, so
// a logit is summed in another order than over packed panels.
#include "sluice/runtime/kernels/attention_panel/attention_panel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
using sluice::kernels::PanelAhead;

// The addresses of a panel's rows. Those past its end repeat the last one.
struct RowPointers {
  const uint8_t* at[kPanelKeys];
};
HWY_INLINE void PointAt(const PanelSource& s, int64_t n, RowPointers& rows) {
  for (int64_t j = 0; j < kPanelKeys; ++j) rows.at[j] = SourceRow(s, HWY_MIN(j, n - 1));
}

// Rows of the panel that comes after, asked for while a few keys of this one are multiplied: a line
// of memory of each at a step of the width. Many lines asked for at once would be waited for.
class RowsAhead {
 public:
  static constexpr int64_t kMost = 4;
  // `turns`: how often a few keys of this panel are multiplied.
  RowsAhead(const PanelAhead& panel, int64_t turns)
      : panel_(panel), rows_(panel.n == 0 ? 0 : HWY_MIN((panel.n + turns - 1) / turns, kMost)) {
    if (rows_ == 3) rows_ = kMost;
  }
  // Of a turn: 0, 1, 2 or kMost.
  int64_t rows() const { return rows_; }
  // A turn begins.
  HWY_INLINE void Turn() {
    for (int64_t i = 0; i < rows_; ++i) {
      const int64_t row = HWY_MIN(panel_.n - 1, next_ + i);
      at_[0][i] = SourceRow(panel_.keys, row);
      at_[1][i] = SourceRow(panel_.values, row);
    }
    next_ += rows_;
  }
  // Step `i / N` over elements of a type; kRows is rows(). Steps of less than a line take keys and
  // values by turns.
  template <DType kType, int kRows>
  HWY_INLINE void Fetch(int64_t i, int64_t N) const {
    if constexpr (kRows > 0) {
      constexpr int64_t kLine = 64;
      const int64_t byte = static_cast<int64_t>(sluice::DTypeBytes(kType, i)) / kLine * kLine;
      const uint8_t* const* rows = at_[i / N % 2];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) __builtin_prefetch(rows[r] + byte, 0, 2);
      if constexpr (kType == DType::kF32) {
        const uint8_t* const* others = at_[(i / N + 1) % 2];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) __builtin_prefetch(others[r] + byte, 0, 2);
      }
    }
  }

 private:
  const PanelAhead& panel_;
  int64_t rows_;
  int64_t next_ = 0;
  const uint8_t* at_[2][kMost];
};

#if HWY_TARGET == HWY_SCALAR
template <DType kType>
HWY_INLINE void RowLogits(const float* HWY_RESTRICT q, int64_t d, int64_t rows,
                          const RowPointers& keys, int64_t n, RowsAhead&, float* HWY_RESTRICT s) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0;
      for (int64_t i = 0; i < d; ++i) sum += q[r * d + i] * LoadOne(kType, keys.at[j], i);
      s[r * kPanelKeys + j] = sum;
    }
  }
}
#else
// The sum of a vector's blocks of four lanes.
template <class D>
HWY_INLINE auto FoldBlocks(D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) <= 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return FoldBlocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}
// The sums of four vectors' lanes.
HWY_INLINE auto SumFour(VF a, VF b, VF c, VF e) {
  const DF d;
  const hn::RepartitionToWide<DF> d2;
  const VF ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const VF ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto ab2 = hn::BitCast(d2, ab);
  const auto ce2 = hn::BitCast(d2, ce);
  return FoldBlocks(d, hn::Add(hn::BitCast(d, hn::InterleaveLower(d2, ab2, ce2)),
                               hn::BitCast(d, hn::InterleaveUpper(d2, ab2, ce2))));
}

// Logits of R rows against K keys. Every accumulator sums the width in rising order, so that bits
// depend neither on R nor on K.
template <DType kType, int R, int K, int kAhead>
HWY_INLINE void LogitTile(const float* HWY_RESTRICT q, int64_t width, const uint8_t* const* keys,
                          const RowsAhead& ahead, float* HWY_RESTRICT s) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  VF acc[R][K];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) acc[r][k] = hn::Zero(d);
  }
  for (int64_t i = 0; i < width; i += N) {
    ahead.Fetch<kType, kAhead>(i, N);
    VF key[K];
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) key[k] = LoadF32<kType>(d, keys[k], i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const VF query = hn::LoadU(d, q + r * width + i);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) acc[r][k] = hn::MulAdd(query, key[k], acc[r][k]);
    }
  }
  const hn::FixedTag<float, 4> d4;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int k = 0; k < K; k += 4) {
      hn::StoreU(SumFour(acc[r][k], acc[r][k + 1], acc[r][k + 2], acc[r][k + 3]), d4,
                 s + r * kPanelKeys + k);
    }
  }
}
template <DType kType, int R, int kAhead>
HWY_INLINE void RowLogitsOf(const float* HWY_RESTRICT q, int64_t d, const RowPointers& keys,
                            int64_t n, RowsAhead& ahead, float* HWY_RESTRICT s) {
#if HWY_TARGET <= HWY_AVX3
  constexpr int kKeys = R <= 2 ? 8 : 4;  // of 32 registers: accumulators, keys and one query
#else
  constexpr int kKeys = 4;
#endif
  for (int64_t j = 0; j < n; j += kKeys) {
    ahead.Turn();
    LogitTile<kType, R, kKeys, kAhead>(q, d, keys.at + j, ahead, s + j);
  }
}
template <DType kType, int R>
HWY_INLINE void RowLogitsOf(const float* HWY_RESTRICT q, int64_t d, const RowPointers& keys,
                            int64_t n, RowsAhead& ahead, float* HWY_RESTRICT s) {
  switch (ahead.rows()) {
    case 0:
      return RowLogitsOf<kType, R, 0>(q, d, keys, n, ahead, s);
    case 1:
      return RowLogitsOf<kType, R, 1>(q, d, keys, n, ahead, s);
    case 2:
      return RowLogitsOf<kType, R, 2>(q, d, keys, n, ahead, s);
    default:
      return RowLogitsOf<kType, R, RowsAhead::kMost>(q, d, keys, n, ahead, s);
  }
}
template <DType kType>
HWY_INLINE void RowLogits(const float* HWY_RESTRICT q, int64_t d, int64_t rows,
                          const RowPointers& keys, int64_t n, RowsAhead& ahead,
                          float* HWY_RESTRICT s) {
  switch (rows) {
    case 1:
      return RowLogitsOf<kType, 1>(q, d, keys, n, ahead, s);
    case 2:
      return RowLogitsOf<kType, 2>(q, d, keys, n, ahead, s);
    case 3:
      return RowLogitsOf<kType, 3>(q, d, keys, n, ahead, s);
    default:
      return RowLogitsOf<kType, 4>(q, d, keys, n, ahead, s);
  }
}
#endif

// o [R, NV vectors] += weights . values. Hidden keys (`mask`, null: none) are left out, whatever
// their values hold.
template <DType kType, int R, int NV>
HWY_INLINE void ValueTile(const float* HWY_RESTRICT weights, const RowPointers& values, int64_t n,
                          int64_t at, const uint64_t* mask, float* HWY_RESTRICT o, int64_t stride) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  VF acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[r][v] = hn::LoadU(d, o + r * stride + v * N);
  }
  for (int64_t j = 0; j < n; ++j) {
    VF value[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) value[v] = LoadF32<kType>(d, values.at[j], at + v * N);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if (mask != nullptr && ((mask[r] >> j) & 1) == 0) continue;
      const VF weight = hn::Set(d, weights[r * kPanelKeys + j]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = hn::MulAdd(weight, value[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) hn::StoreU(acc[r][v], d, o + r * stride + v * N);
  }
}
template <DType kType, int R>
HWY_INLINE void RowValuesOf(const float* HWY_RESTRICT weights, const RowPointers& values, int64_t n,
                            const uint64_t* mask, float* HWY_RESTRICT o, int64_t dv) {
  const int64_t N = hn::Lanes(DF());
#if HWY_TARGET <= HWY_AVX3
  constexpr int kWide = 4;
#else
  constexpr int kWide = 2;
#endif
  int64_t x = 0;
  for (; x + kWide * N <= dv; x += kWide * N)
    ValueTile<kType, R, kWide>(weights, values, n, x, mask, o + x, dv);
  for (; x < dv; x += N) ValueTile<kType, R, 1>(weights, values, n, x, mask, o + x, dv);
}
template <DType kType>
HWY_INLINE void RowValues(const float* HWY_RESTRICT weights, const RowPointers& values, int64_t n,
                          const uint64_t* mask, int64_t rows, float* HWY_RESTRICT o, int64_t dv) {
  switch (rows) {
    case 1:
      return RowValuesOf<kType, 1>(weights, values, n, mask, o, dv);
    case 2:
      return RowValuesOf<kType, 2>(weights, values, n, mask, o, dv);
    case 3:
      return RowValuesOf<kType, 3>(weights, values, n, mask, o, dv);
    default:
      return RowValuesOf<kType, 4>(weights, values, n, mask, o, dv);
  }
}

HWY_INLINE void RowLogits(DType type, const float* HWY_RESTRICT q, int64_t d, int64_t rows,
                          const RowPointers& keys, int64_t n, RowsAhead& ahead,
                          float* HWY_RESTRICT s) {
  switch (type) {
    case DType::kF32:
      return RowLogits<DType::kF32>(q, d, rows, keys, n, ahead, s);
    case DType::kBF16:
      return RowLogits<DType::kBF16>(q, d, rows, keys, n, ahead, s);
    case DType::kF16:
      return RowLogits<DType::kF16>(q, d, rows, keys, n, ahead, s);
    case DType::kI8:
      return RowLogits<DType::kI8>(q, d, rows, keys, n, ahead, s);
    case DType::kQ8_0:
      return RowLogits<DType::kQ8_0>(q, d, rows, keys, n, ahead, s);
    case DType::kQ4_0:
      return RowLogits<DType::kQ4_0>(q, d, rows, keys, n, ahead, s);
  }
}
HWY_INLINE void RowValues(DType type, const float* HWY_RESTRICT weights, const RowPointers& values,
                          int64_t n, const uint64_t* mask, int64_t rows, float* HWY_RESTRICT o,
                          int64_t dv) {
  switch (type) {
    case DType::kF32:
      return RowValues<DType::kF32>(weights, values, n, mask, rows, o, dv);
    case DType::kBF16:
      return RowValues<DType::kBF16>(weights, values, n, mask, rows, o, dv);
    case DType::kF16:
      return RowValues<DType::kF16>(weights, values, n, mask, rows, o, dv);
    case DType::kI8:
      return RowValues<DType::kI8>(weights, values, n, mask, rows, o, dv);
    case DType::kQ8_0:
      return RowValues<DType::kQ8_0>(weights, values, n, mask, rows, o, dv);
    case DType::kQ4_0:
      return RowValues<DType::kQ4_0>(weights, values, n, mask, rows, o, dv);
  }
}

HWY_MAYBE_UNUSED static HWY_NOINLINE float AttendRows(const AttentionPanel& p,
                                                      const PanelSource& ks, const PanelSource& vs,
                                                      const PanelAhead& next) {
  const uint64_t all = p.n == kPanelKeys ? ~uint64_t{0} : (uint64_t{1} << p.n) - 1;
  const bool extra = HasExtra(p);
  constexpr int64_t kRows = 4;
  RowPointers keys;
  RowPointers values;
  PointAt(ks, p.n, keys);
  PointAt(vs, p.n, values);
  constexpr int64_t kKeys = 4;
  RowsAhead ahead(next, (p.rows + kRows - 1) / kRows * ((p.n + kKeys - 1) / kKeys));
  float gain = 0;
  for (int64_t r0 = 0; r0 < p.rows; r0 += kRows) {
    const int64_t rows = HWY_MIN(p.rows - r0, kRows);
    float* s = p.scratch;
    if (p.n < kPanelKeys) std::memset(s, 0, static_cast<size_t>(rows * kPanelKeys) * sizeof(float));
    RowLogits(ks.dtype, p.q + r0 * p.d, p.d, rows, keys, p.n, ahead, s);
    for (int64_t r = 0; r < rows; ++r) {
      const float row_gain = FinishRow(p, r0 + r, all, extra, s + r * kPanelKeys);
      if (row_gain > gain) gain = row_gain;
    }
    const uint64_t* mask = p.mask != nullptr ? p.mask + r0 : nullptr;
    RowValues(vs.dtype, s, values, p.n, mask, rows, p.o + r0 * p.dv, p.dv);
  }
  return gain;
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
