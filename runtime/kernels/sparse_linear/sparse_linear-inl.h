// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_SPARSE_LINEAR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_SPARSE_LINEAR_INL_H_
#undef SLUICE_RUNTIME_KERNELS_SPARSE_LINEAR_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_SPARSE_LINEAR_INL_H_
#endif
#include <array>
#include <bit>

#include "hwy/cache_control.h"
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/sparse_linear/sparse_linear.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
using sluice::kernels::kSparseChunk;
using sluice::kernels::kSparsePanel;
using sluice::kernels::kSparseStrip;
using sluice::kernels::SparsePattern;
using sluice::kernels::SparseView;

#if HWY_TARGET > HWY_AVX3 || !HWY_ARCH_X86
// For every byte of bits and each of its lanes, which packed value goes there.
struct ExpandTable {
  alignas(32) std::array<std::array<int32_t, 8>, 256> lane = {};
  constexpr ExpandTable() {
    for (int bits = 0; bits < 256; ++bits) {
      int32_t next = 0;
      for (int i = 0; i < 8; ++i) lane[bits][i] = (bits >> i & 1) != 0 ? next++ : 0;
    }
  }
};
inline constexpr ExpandTable kExpandTable;
#endif

// The first values of v to the lanes whose bit is set, 0 to the others. Highway 1.0.3 has no
// Expand.
HWY_INLINE VF ExpandLanes(DF d, uint32_t bits, hn::Mask<DF> mask, VF v) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  (void)d;
  (void)bits;
  return VF{_mm512_maskz_expand_ps(mask.raw, v.raw)};
#else
  static_assert(hn::MaxLanes(DF()) <= 8, "the table has eight lanes");
  const hn::RebindToSigned<DF> di;
  const auto from = hn::IndicesFromVec(d, hn::LoadU(di, kExpandTable.lane[bits].data()));
  return hn::IfThenElseZero(mask, hn::TableLookupLanes(v, from));
#endif
}

// Lanes whose bit is set, 0 in the others. All of them may be read.
HWY_INLINE VF LoadKept(DF d, hn::Mask<DF> mask, const float* p) {
#if HWY_TARGET <= HWY_AVX2
  return hn::MaskedLoad(mask, d, p);
#else  // MaskedLoad wants p aligned
  return hn::IfThenElseZero(mask, hn::LoadU(d, p));
#endif
}

// What lies `bytes` ahead of value `at`, as much as a word's weights take. Several rows' values are
// more streams than the processor foresees by itself.
template <DType kType>
HWY_INLINE void PrefetchValues(const void* values, int64_t at, int64_t bytes) {
  const char* p = static_cast<const char*>(values) + sluice::DTypeBytes(kType, at) + bytes;
  hwy::Prefetch(p);
  hwy::Prefetch(p + 64);
}

// Sums of one row of W with R rows of x. Four accumulators each, by column, so that a sum's bits do
// not depend on R.
template <DType kType, bool kFixed, int R>
class BitsRow {
 public:
  HWY_INLINE void Begin(const void* values, int64_t at) {
    values_ = values;
    at_ = at;
    for (auto& row : sum_) {
      for (VF& s : row) s = hn::Zero(DF());
    }
  }

  // 64 columns, x at their first.
  HWY_INLINE void Word(uint64_t word, int64_t chunk_values, const float* HWY_RESTRICT x,
                       int64_t ldx) {
    const DF d;
    constexpr int64_t N = hn::MaxLanes(DF());
    PrefetchValues<kType>(values_, at_, 2048);
#pragma GCC unroll 4
    for (int64_t c = 0; c < 64; c += kSparseChunk) {
      int64_t at = at_;
#pragma GCC unroll 4
      for (int64_t j = c; j < c + kSparseChunk; j += N) {
        const auto bits = static_cast<uint32_t>(word >> j & ((uint64_t{1} << N) - 1));
        const hn::Mask<DF> mask = LanesMask(word, j);
        const VF w = ExpandLanes(d, bits, mask, LoadF32<kType>(d, values_, at));
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          VF& sum = sum_[r][j / N % 4];
          sum = hn::MulAdd(w, LoadKept(d, mask, x + r * ldx + j), sum);
        }
        at += std::popcount(bits);
      }
      at_ = kFixed ? at_ + chunk_values : at;
    }
  }
  HWY_INLINE float Sum(int r) const {
    const VF* s = sum_[r];
    return hn::GetLane(hn::SumOfLanes(DF(), hn::Add(hn::Add(s[0], s[1]), hn::Add(s[2], s[3]))));
  }

 private:
  const void* values_;
  int64_t at_;
  VF sum_[R][4];
};

HWY_INLINE int64_t FirstValue(const SparseView& w, int64_t row) {
  if (w.pattern == SparsePattern::kBitmap) return w.begin[row];
  return row * ((w.cols + kSparseChunk - 1) / kSparseChunk) * w.chunk_values;
}

// Calls that go by rows are real ones: inlined into each other they take minutes to compile, and
// cost nothing beside a row.
// W rows of the matrix from row `first`, side by side: memory has more to do at once, and x comes
// from the nearest cache for all but the first. tail [R, 64]: x from the last whole word on.
template <DType kType, bool kFixed, int R, int W>
HWY_NOINLINE void BitsRows(const SparseView& w, int64_t first, const float* x, int64_t ldx,
                           const float* tail, float* y, int64_t ldy, bool accumulate) {
  const int64_t words = (w.cols + 63) / 64;
  const int64_t whole = w.cols / 64;
  const uint64_t* bits = w.bits + first * words;
  BitsRow<kType, kFixed, R> row[W];
#pragma GCC unroll 4
  for (int i = 0; i < W; ++i) row[i].Begin(w.values, FirstValue(w, first + i));
  for (int64_t j = 0; j < words; ++j) {
    const bool in_tail = j == whole;
    const float* from = in_tail ? tail : x + j * 64;
    const int64_t stride = in_tail ? 64 : ldx;
#pragma GCC unroll 4
    for (int i = 0; i < W; ++i) row[i].Word(bits[i * words + j], w.chunk_values, from, stride);
  }
#pragma GCC unroll 4
  for (int i = 0; i < W; ++i) {
    for (int r = 0; r < R; ++r) {
      float& out = y[r * ldy + first + i];
      out = accumulate ? out + row[i].Sum(r) : row[i].Sum(r);
    }
  }
}

template <DType kType, bool kFixed, int R>
HWY_INLINE void BitsGemv(const SparseView& w, int64_t begin, int64_t end, const float* x,
                         int64_t ldx, float* y, int64_t ldy, bool accumulate) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  constexpr int kRowsAtOnce = 4 / R;  // accumulators: 16 of 32 registers
#else
  constexpr int kRowsAtOnce = R == 1 ? 2 : 1;
#endif
  const int64_t words = (w.cols + 63) / 64;
  const int64_t whole = w.cols / 64;
  alignas(64) float tail[R * 64] = {};  // loads under a mask may read what it hides
  for (int r = 0; whole < words && r < R; ++r)
    std::memcpy(tail + r * 64, x + r * ldx + whole * 64, (w.cols - whole * 64) * sizeof(float));

  int64_t o = begin;
  for (; o + kRowsAtOnce <= end; o += kRowsAtOnce)
    BitsRows<kType, kFixed, R, kRowsAtOnce>(w, o, x, ldx, tail, y, ldy, accumulate);
  for (; o < end; ++o) BitsRows<kType, kFixed, R, 1>(w, o, x, ldx, tail, y, ldy, accumulate);
}

// H rows of every block of a row of blocks, from its row `first`, with one row of x.
template <DType kType, int H>
HWY_NOINLINE void BlockRows(const SparseView& w, int64_t block_row, int64_t first, const float* x,
                            float* y, bool accumulate) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  VF sum[H];
  for (VF& s : sum) s = hn::Zero(d);
  for (int64_t b = w.begin[block_row]; b < w.begin[block_row + 1]; ++b) {
    const int64_t at = (b * w.block_rows + first) * w.block_cols;
    const float* in = x + w.block_col[b] * w.block_cols;
    for (int64_t c = 0; c < w.block_cols; c += N) {
      const VF xv = hn::LoadU(d, in + c);
#pragma GCC unroll 16
      for (int h = 0; h < H; ++h)
        sum[h] = hn::MulAdd(LoadF32<kType>(d, w.values, at + h * w.block_cols + c), xv, sum[h]);
    }
  }
  for (int h = 0; h < H; ++h) {
    float& out = y[block_row * w.block_rows + first + h];
    const float s = hn::GetLane(hn::SumOfLanes(d, sum[h]));
    out = accumulate ? out + s : s;
  }
}

template <DType kType>
HWY_INLINE void BlockGemv(const SparseView& w, int64_t begin, int64_t end, const float* x, float* y,
                          bool accumulate) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  constexpr int kMost = 16;  // of 32 registers
#else
  constexpr int kMost = 8;
#endif
  for (int64_t b = begin / w.block_rows; b < end / w.block_rows; ++b) {
    for (int64_t first = 0; first < w.block_rows;) {
      const int64_t left = w.block_rows - first;
      if (left >= kMost) {
        BlockRows<kType, kMost>(w, b, first, x, y, accumulate);
        first += kMost;
      } else if (left >= 4) {
        BlockRows<kType, 4>(w, b, first, x, y, accumulate);
        first += 4;
      } else {
        BlockRows<kType, 1>(w, b, first, x, y, accumulate);
        first += 1;
      }
    }
  }
}

template <DType kType, int R>
HWY_INLINE void GemvRows(const SparseView& w, int64_t begin, int64_t end, const float* x,
                         int64_t ldx, float* y, int64_t ldy, bool accumulate) {
  switch (w.pattern) {
    case SparsePattern::kBitmap:
      return BitsGemv<kType, false, R>(w, begin, end, x, ldx, y, ldy, accumulate);
    case SparsePattern::kNofM:
      return BitsGemv<kType, true, R>(w, begin, end, x, ldx, y, ldy, accumulate);
    case SparsePattern::kBlock:
      for (int r = 0; r < R; ++r)
        BlockGemv<kType>(w, begin, end, x + r * ldx, y + r * ldy, accumulate);
      return;
  }
}

template <DType kType>
HWY_NOINLINE void GemvT(const SparseView& w, int64_t begin, int64_t end, const float* x,
                        int64_t ldx, int64_t n, float* y, int64_t ldy, bool accumulate) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    GemvRows<kType, 4>(w, begin, end, x + i * ldx, ldx, y + i * ldy, ldy, accumulate);
  for (; i + 2 <= n; i += 2)
    GemvRows<kType, 2>(w, begin, end, x + i * ldx, ldx, y + i * ldy, ldy, accumulate);
  if (i < n) GemvRows<kType, 1>(w, begin, end, x + i * ldx, ldx, y + i * ldy, ldy, accumulate);
}

HWY_MAYBE_UNUSED static HWY_NOINLINE void SparseGemv(const SparseView& w, int64_t begin,
                                                     int64_t end, const float* x, int64_t ldx,
                                                     int64_t n, float* y, int64_t ldy,
                                                     bool accumulate) {
  switch (w.type) {
    case DType::kBF16:
      return GemvT<DType::kBF16>(w, begin, end, x, ldx, n, y, ldy, accumulate);
    case DType::kF16:
      return GemvT<DType::kF16>(w, begin, end, x, ldx, n, y, ldy, accumulate);
    default:
      return GemvT<DType::kF32>(w, begin, end, x, ldx, n, y, ldy, accumulate);
  }
}

HWY_MAYBE_UNUSED static HWY_NOINLINE void SparsePack(const float* x, int64_t ldx, int64_t n,
                                                     int64_t cols, float* panel) {
  PackKeys({x, DType::kF32, ldx * int64_t{sizeof(float)}, nullptr}, n, cols, panel);
}

// sums [NV vectors] += the weights of `bits` times their rows of the panel. Every other weight has
// accumulators of its own: the next one need not wait for it.
template <int NV>
HWY_INLINE void AddWeights(uint64_t bits, const float* HWY_RESTRICT values,
                           const float* HWY_RESTRICT panel, float* HWY_RESTRICT sums) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  VF even[NV];
  VF odd[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    even[v] = hn::LoadU(d, sums + v * N);
    odd[v] = hn::Zero(d);
  }
  const auto add = [&](VF* to) HWY_ATTR {
    const VF w = hn::Set(d, *values++);
    const float* x = panel + std::countr_zero(bits) * kSparsePanel;
    bits &= bits - 1;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) to[v] = hn::MulAdd(w, hn::LoadU(d, x + v * N), to[v]);
  };
  int left = std::popcount(bits);
  for (; left >= 2; left -= 2) {
    add(even);
    add(odd);
  }
  if (left > 0) add(even);
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) hn::StoreU(hn::Add(even[v], odd[v]), d, sums + v * N);
}
HWY_INLINE void AddWeightsTo(uint64_t bits, const float* values, const float* panel, int64_t n,
                             float* sums) {
  const int64_t N = hn::Lanes(DF());
  int64_t j = 0;
  for (; j + 3 * N < n; j += 4 * N) AddWeights<4>(bits, values, panel + j, sums + j);
  for (; j + N < n; j += 2 * N) AddWeights<2>(bits, values, panel + j, sums + j);
  if (j < n) AddWeights<1>(bits, values, panel + j, sums + j);
}

// `rows` rows of W into sums [rows, kSparsePanel]: word by word of all rows, so that its part of
// the panel stays in the nearest cache. as_float: [64].
template <DType kType, bool kFixed>
HWY_INLINE void BitsPanel(const SparseView& w, int64_t first, int64_t rows, const float* panel,
                          int64_t n, float* sums, float* as_float) {
  const int64_t words = (w.cols + 63) / 64;
  const auto add = [&](uint64_t bits, int64_t at, const float* x, float* to) HWY_ATTR {
    const float* values = as_float;
    if constexpr (kType == DType::kF32)
      values = static_cast<const float*>(w.values) + at;
    else
      ToF32T<kType>(static_cast<const uint16_t*>(w.values) + at, std::popcount(bits), as_float);
    PrefetchValues<kType>(w.values, at, 256);  // of this row's next word, a strip later
    AddWeightsTo(bits, values, x, n, to);
  };
  int64_t at[kSparseStrip];
  for (int64_t r = 0; r < rows; ++r) at[r] = FirstValue(w, first + r);
  for (int64_t i = 0; i < words; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      const uint64_t word = w.bits[(first + r) * words + i];
      const int64_t count = std::popcount(word);
      const float* x = panel + i * 64 * kSparsePanel;
      float* to = sums + r * kSparsePanel;
      if (!kFixed || count == 64 / kSparseChunk * w.chunk_values) {  // no gaps between values
        add(word, at[r], x, to);
        at[r] += count;
        continue;
      }
      for (int64_t c = 0; c < 64 && i * 64 + c < w.cols; c += kSparseChunk) {
        add(word >> c & 0xFFFF, at[r], x + c * kSparsePanel, to);
        at[r] += w.chunk_values;
      }
    }
  }
}

// The same for rows of whole blocks. as_float: [block_rows, block_cols].
template <DType kType>
HWY_INLINE void BlockPanel(const SparseView& w, int64_t first, int64_t rows, const float* panel,
                           int64_t n, float* sums, float* as_float) {
  const int64_t size = w.block_rows * w.block_cols;
  const int64_t wide = (n + 15) / 16 * 16;
  for (int64_t r = 0; r < rows; r += w.block_rows) {
    const int64_t block_row = (first + r) / w.block_rows;
    for (int64_t b = w.begin[block_row]; b < w.begin[block_row + 1]; ++b) {
      const float* values = as_float;
      if constexpr (kType == DType::kF32)
        values = static_cast<const float*>(w.values) + b * size;
      else
        ToF32T<kType>(static_cast<const uint16_t*>(w.values) + b * size, size, as_float);
      PanelGemm<true>(w.block_rows, values, w.block_cols,
                      panel + w.block_col[b] * w.block_cols * kSparsePanel, kSparsePanel,
                      w.block_cols, wide, sums + r * kSparsePanel, kSparsePanel);
    }
  }
}

template <DType kType>
HWY_NOINLINE void PanelT(const SparseView& w, int64_t begin, int64_t end, const float* panel,
                         int64_t n, float* y, int64_t ldy, bool accumulate, float* scratch) {
  float* sums = scratch;
  float* as_float = scratch + kSparseStrip * kSparsePanel;
  const int64_t unit = w.pattern == SparsePattern::kBlock ? w.block_rows : 1;
  const int64_t strip = kSparseStrip / unit * unit;
  for (int64_t o = begin; o < end; o += strip) {
    const int64_t rows = HWY_MIN(end - o, strip);
    std::memset(sums, 0, rows * kSparsePanel * sizeof(float));
    if (w.pattern == SparsePattern::kBitmap)
      BitsPanel<kType, false>(w, o, rows, panel, n, sums, as_float);
    else if (w.pattern == SparsePattern::kNofM)
      BitsPanel<kType, true>(w, o, rows, panel, n, sums, as_float);
    else
      BlockPanel<kType>(w, o, rows, panel, n, sums, as_float);

    for (int64_t i = 0; i < n; ++i) {
      for (int64_t r = 0; r < rows; ++r) {
        float& out = y[i * ldy + o + r];
        out = accumulate ? out + sums[r * kSparsePanel + i] : sums[r * kSparsePanel + i];
      }
    }
  }
}

HWY_MAYBE_UNUSED static HWY_NOINLINE void SparsePanel(const SparseView& w, int64_t begin,
                                                      int64_t end, const float* panel, int64_t n,
                                                      float* y, int64_t ldy, bool accumulate,
                                                      float* scratch) {
  switch (w.type) {
    case DType::kBF16:
      return PanelT<DType::kBF16>(w, begin, end, panel, n, y, ldy, accumulate, scratch);
    case DType::kF16:
      return PanelT<DType::kF16>(w, begin, end, panel, n, y, ldy, accumulate, scratch);
    default:
      return PanelT<DType::kF32>(w, begin, end, panel, n, y, ldy, accumulate, scratch);
  }
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
