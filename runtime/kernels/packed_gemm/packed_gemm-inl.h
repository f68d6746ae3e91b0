// Per-target guard: compiled once per instruction set.
#if defined(SLUICE_RUNTIME_KERNELS_PACKED_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SLUICE_RUNTIME_KERNELS_PACKED_GEMM_INL_H_
#undef SLUICE_RUNTIME_KERNELS_PACKED_GEMM_INL_H_
#else
#define SLUICE_RUNTIME_KERNELS_PACKED_GEMM_INL_H_
#endif
#include "hwy/cache_control.h"
#include "sluice/runtime/kernels/common/panel-inl.h"
#include "sluice/runtime/kernels/packed_gemm/packed_gemm.h"

HWY_BEFORE_NAMESPACE();
namespace sluice_kernels {
namespace HWY_NAMESPACE {
using sluice::kernels::RowsAt;

constexpr int64_t kTileRows = 6;
#if HWY_TARGET <= HWY_AVX3
constexpr int kTileWide = 4;  // vectors; 24 of 32 registers accumulate
#else
constexpr int kTileWide = 2;  // 12 of 16
#endif

// n floats that are used soon.
HWY_INLINE void PrefetchRow(const float* row, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t x = 0; x < n; x += kLine) hwy::Prefetch(row + x);
}

// MR rows by one panel: finish(r, j, sums), for every vector of row r from column j of the panel
// on, is stored at to(r) + j. `soon`: 64 floats of every row that finish() reads, or null. Whatever
// the width of vectors, a sum runs over k once.
template <int MR, class Finish, class To>
HWY_INLINE void RowsByPanel(const float* const* HWY_RESTRICT rows, const float* HWY_RESTRICT panel,
                            int64_t k, float* const* soon, const Finish& finish, const To& to) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  // What is fetched earlier would leave the first cache again before it is used: the panel passes
  // through it.
  constexpr int64_t kSoon = 48;
  const float* a[MR];
  for (int r = 0; r < MR; ++r) a[r] = rows[r];
  for (int64_t j = 0; j < kPanelKeys; j += kTileWide * N) {
    VF acc[MR][kTileWide];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kTileWide; ++v) acc[r][v] = hn::Zero(d);
    }
    const float* b = panel + j;
    int64_t x = 0;
    for (int64_t end : {HWY_MAX(k - kSoon, int64_t{0}), k}) {
      for (; x < end; ++x, b += kPanelKeys) {
        VF bv[kTileWide];
#pragma GCC unroll 8
        for (int v = 0; v < kTileWide; ++v) bv[v] = hn::LoadU(d, b + v * N);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
          const VF av = hn::Set(d, a[r][x]);
#pragma GCC unroll 8
          for (int v = 0; v < kTileWide; ++v) acc[r][v] = hn::MulAdd(av, bv[v], acc[r][v]);
        }
      }
      for (int r = 0; soon != nullptr && j == 0 && end < k && r < MR; ++r)
        PrefetchRow(soon[r], kPanelKeys);
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kTileWide; ++v) acc[r][v] = finish(r, j + v * N, acc[r][v]);
    }
    // Stored when finish() has read all rows: no read waits for a store to another row.
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kTileWide; ++v) hn::StoreU(acc[r][v], d, to(r) + j + v * N);
    }
  }
}
struct AsItIs {
  HWY_INLINE VF operator()(int, int64_t, VF sum) const { return sum; }
};
// The same for 1, 2, 4 or 6 rows.
template <class Finish, class To>
HWY_INLINE void TileByPanel(int64_t count, const float* const* rows, const float* panel, int64_t k,
                            float* const* soon, const Finish& finish, const To& to) {
  switch (count) {
    case 1:
      return RowsByPanel<1>(rows, panel, k, soon, finish, to);
    case 2:
      return RowsByPanel<2>(rows, panel, k, soon, finish, to);
    case 4:
      return RowsByPanel<4>(rows, panel, k, soon, finish, to);
    default:
      return RowsByPanel<6>(rows, panel, k, soon, finish, to);
  }
}
// The products [count, 64], rows `stride` apart.
HWY_NOINLINE void StoreTile(int64_t count, const float* const* rows, const float* panel, int64_t k,
                            float* HWY_RESTRICT tile, int64_t stride) {
  TileByPanel(count, rows, panel, k, nullptr, AsItIs(),
              [&](int r) HWY_ATTR { return tile + r * stride; });
}
// body(i, count, j, columns, rows): rows i to i + count of A by the panel that begins at row j of
// B. A panel stays in the second cache while the rows of a block pass by it, so that weights are
// read once a block; rows are read once a panel, which is a twelfth of what the products read.
template <class Body>
HWY_INLINE void ForEachTile(const RowsAt& a, int64_t m, int64_t n, int64_t k, const Body& body) {
  constexpr int64_t kBlockFloats = int64_t{1} << 18;
  const int64_t block =
      HWY_MAX(kBlockFloats / HWY_MAX(k, int64_t{1}) / kTileRows, int64_t{1}) * kTileRows;
  const auto row = [&](int64_t i) { return a.base + (a.ids != nullptr ? a.ids[i] : i) * a.stride; };
  for (int64_t from = 0; from < m; from += block) {
    const int64_t to = HWY_MIN(m, from + block);
    for (int64_t j = 0; j < n; j += kPanelKeys) {
      for (int64_t i = from; i < to;) {
        const int64_t left = to - i;
        const int64_t count = left >= kTileRows ? kTileRows : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        const float* rows[kTileRows];
        for (int64_t r = 0; r < count; ++r) rows[r] = row(i + r);
        // Chosen rows lie anywhere: the first panel that meets them would wait.
        const int64_t soon = HWY_MIN(i + count + kTileRows, to);
        for (int64_t r = i + count; j == 0 && a.ids != nullptr && r < soon; ++r)
          PrefetchRow(row(r), k);
        body(i, count, j, HWY_MIN(n - j, kPanelKeys), rows);
        i += count;
      }
    }
  }
}

HWY_MAYBE_UNUSED static HWY_NOINLINE void PackRows(const float* b, int64_t ldb, int64_t n,
                                                   int64_t k, float* packed) {
  for (int64_t j = 0; j < n; j += kPanelKeys)
    PackKeys({b + j * ldb, DType::kF32, ldb * int64_t{sizeof(float)}, nullptr},
             HWY_MIN(n - j, kPanelKeys), k, packed + j * k);
}

HWY_MAYBE_UNUSED static HWY_NOINLINE void GemmPacked(const RowsAt& a, const float* packed,
                                                     int64_t m, int64_t n, int64_t k, float* c,
                                                     int64_t ldc) {
  HWY_ALIGN float tile[kTileRows * kPanelKeys];
  ForEachTile(a, m, n, k,
              [&](int64_t i, int64_t count, int64_t j, int64_t columns, const float* const* rows)
                  HWY_ATTR {
                    float* HWY_RESTRICT to = c + i * ldc + j;
                    const float* panel = packed + j * k;
                    if (columns == kPanelKeys) return StoreTile(count, rows, panel, k, to, ldc);
                    StoreTile(count, rows, panel, k, tile, kPanelKeys);
                    for (int64_t r = 0; r < count; ++r)
                      std::memcpy(to + r * ldc, tile + r * kPanelKeys, columns * sizeof(float));
                  });
}

HWY_MAYBE_UNUSED static HWY_NOINLINE void GemmPackedAdd(const RowsAt& a, const float* packed,
                                                        int64_t m, int64_t n, int64_t k,
                                                        const int32_t* ids, const float* weight,
                                                        float* out, int64_t stride) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  HWY_ALIGN float tile[kTileRows * kPanelKeys];
  ForEachTile(
      a, m, n, k,
      [&](int64_t i, int64_t count, int64_t j, int64_t columns, const float* const* rows) HWY_ATTR {
        float* to[kTileRows];
        for (int64_t r = 0; r < count; ++r) to[r] = out + ids[i + r] * stride + j;
        const float* panel = packed + j * k;
        if (columns == kPanelKeys) {
          TileByPanel(
              count, rows, panel, k, to,
              [&](int r, int64_t at, VF sum) HWY_ATTR {
                return hn::MulAdd(hn::Set(d, weight[i + r]), sum, hn::LoadU(d, to[r] + at));
              },
              [&](int r) HWY_ATTR { return to[r]; });
          return;
        }
        StoreTile(count, rows, panel, k, tile, kPanelKeys);
        for (int64_t r = 0; r < count; ++r) {
          float* HWY_RESTRICT o = to[r];
          const float* HWY_RESTRICT x = tile + r * kPanelKeys;
          const VF w = hn::Set(d, weight[i + r]);
          int64_t c = 0;
          for (; c + N <= columns; c += N)
            hn::StoreU(hn::MulAdd(w, hn::Load(d, x + c), hn::LoadU(d, o + c)), d, o + c);
          for (; c < columns; ++c) o[c] += weight[i + r] * x[c];
        }
      });
}

HWY_INLINE VF Silu(VF z) {
  return hn::Mul(z, Logistic2(hn::Mul(z, hn::Set(DF(), 1.44269504f))));  // log2 e
}
HWY_MAYBE_UNUSED static HWY_NOINLINE void GateRows(const float* gate, const float* up, int64_t n,
                                                   float* out) {
  const DF d;
  const int64_t N = hn::Lanes(d);
  int64_t i = 0;
  for (; i + N <= n; i += N)
    hn::StoreU(hn::Mul(Silu(hn::LoadU(d, gate + i)), hn::LoadU(d, up + i)), d, out + i);
  for (; i < n; ++i) out[i] = hn::GetLane(hn::Mul(Silu(hn::Set(d, gate[i])), hn::Set(d, up[i])));
}

HWY_MAYBE_UNUSED static HWY_NOINLINE void GatedPacked(const RowsAt& a, const float* gate,
                                                      const float* up, int64_t m, int64_t n,
                                                      int64_t k, float* h, int64_t ldh) {
  HWY_ALIGN float gates[kTileRows * kPanelKeys];
  HWY_ALIGN float ups[kTileRows * kPanelKeys];
  ForEachTile(
      a, m, n, k,
      [&](int64_t i, int64_t count, int64_t j, int64_t columns, const float* const* rows) HWY_ATTR {
        StoreTile(count, rows, gate + j * k, k, gates, kPanelKeys);
        StoreTile(count, rows, up + j * k, k, ups, kPanelKeys);
        for (int64_t r = 0; r < count; ++r)
          GateRows(gates + r * kPanelKeys, ups + r * kPanelKeys, columns, h + (i + r) * ldh + j);
      });
}
}  // namespace HWY_NAMESPACE
}  // namespace sluice_kernels
HWY_AFTER_NAMESPACE();
#endif
