// Integer scores on AVX512-VNNI dot products. Highway 1.0.3 has none, so this file uses intrinsics;
// it is compiled for the instruction set that it checks for at run time, and nothing here runs
// before that check.
#include "sluice/runtime/kernels/int_score/int_score.h"

#if defined(__x86_64__) && defined(__AVX512VNNI__)
#include <immintrin.h>

#include <cstring>

namespace sluice::kernels {
namespace {
// A tile of rows and groups keeps its sums, a quad of its groups and one of a row in registers.
constexpr int kTileRows = 6;
constexpr int kTileGroups = 4;
constexpr int kFewRows = 3;

bool CpuHasVnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

// What an unsigned key adds to the products of a row, to be taken off.
template <KeyBits kBits>
int32_t Offset(const int8_t* q, int64_t width) {
  int32_t sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += q[i];
  return sum * (kBits == KeyBits::k8 ? -128 : -8);
}

// The offsets of a call's rows, those of the first ones computed once.
template <KeyBits kBits>
class Offsets {
 public:
  Offsets(const int8_t* q, int64_t rows, int64_t width) : q_(q), width_(width) {
    for (int64_t r = 0; r < rows && r < kKept; ++r) kept_[r] = Offset<kBits>(q + r * width, width);
  }
  int32_t operator[](int64_t r) const {
    return r < kKept ? kept_[r] : Offset<kBits>(q_ + r * width_, width_);
  }

 private:
  static constexpr int64_t kKept = 128;
  const int8_t* q_;
  int64_t width_;
  int32_t kept_[kKept];
};

struct Groups {
  const uint8_t* at;
  int64_t bytes;  // of a group
};

// Quad number `half` of those that lie in a row of packed keys.
template <KeyBits kBits>
inline __m512i Quad(const uint8_t* from, int half) {
  const __m512i row = _mm512_loadu_si512(from);
  if constexpr (kBits == KeyBits::k8) return row;
  return _mm512_and_si512(half == 0 ? row : _mm512_srli_epi16(row, 4), _mm512_set1_epi8(15));
}

// dot [kRows][kGroups] = q [kRows, width] . the groups' keys, 16 to a vector.
template <KeyBits kBits, int kRows, int kGroups>
inline void Tile(const int8_t* q, int64_t width, const int32_t* offset, Groups keys,
                 __m512i (&dot)[kRows][kGroups]) {
  constexpr int kHalves = kBits == KeyBits::k8 ? 1 : 2;
  __m512i sum[kRows][kGroups];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) sum[r][g] = _mm512_set1_epi32(offset[r]);
  }
  const uint8_t* from = keys.at;
  const int8_t* end = q + width;
  for (; q < end; q += 4 * kHalves, from += 64) {
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
      __m512i k[kGroups];
#pragma GCC unroll 8
      for (int g = 0; g < kGroups; ++g) k[g] = Quad<kBits>(from + g * keys.bytes, half);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        int32_t four;
        std::memcpy(&four, q + r * width + 4 * half, sizeof four);
        const __m512i qv = _mm512_set1_epi32(four);
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g) {
          // GCC 12 copies and spills the sums of the intrinsic.
          asm("vpdpbusd %2, %1, %0" : "+v"(sum[r][g]) : "v"(k[g]), "v"(qv));
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) dot[r][g] = sum[r][g];
  }
}

// The keys that a call is about, group by group.
struct Range {
  int64_t begin;
  int64_t n;
  int64_t first_group() const { return begin / kIntGroup; }
  int64_t end_group() const { return (begin + n + kIntGroup - 1) / kIntGroup; }
  // Stores the part of a group's values that the range holds; row: where its first key's go.
  template <class T>
  void Store(int64_t group, __m512i values, T* row) const {
    const int64_t key = group * kIntGroup;
    const int64_t before = begin > key ? begin - key : 0;
    const int64_t end = begin + n - key < kIntGroup ? begin + n - key : kIntGroup;
    const auto mask = static_cast<__mmask16>((0xFFFFu << before) & (0xFFFFu >> (kIntGroup - end)));
    _mm512_mask_storeu_epi32(row + key - begin, mask, values);
  }
};

// Adds the weighted positive products of kRows rows to the groups' sums.
template <KeyBits kBits, int kRows, int kGroups>
inline void AddScores(const int8_t* q, int64_t width, const int32_t* offset, const float* weight,
                      Groups keys, __m512 (&sum)[kGroups]) {
  __m512i dot[kRows][kGroups];
  Tile<kBits, kRows, kGroups>(q, width, offset, keys, dot);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const __m512 w = _mm512_set1_ps(weight[r]);
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) {
      const __m512i positive = _mm512_max_epi32(dot[r][g], _mm512_setzero_si512());
      sum[g] = _mm512_fmadd_ps(w, _mm512_cvtepi32_ps(positive), sum[g]);
    }
  }
}

// Every sum takes its rows in rising order, so a key's bits do not depend on its neighbours.
template <KeyBits kBits, int kRows, int kGroups>
void ScoreGroups(const int8_t* q, const Offsets<kBits>& offsets, const float* weight, int64_t heads,
                 int64_t width, Groups keys, __m512 (&sum)[kGroups]) {
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) sum[g] = _mm512_setzero_ps();
  int32_t offset[kRows];
  int64_t j = 0;
  for (; j + kRows <= heads; j += kRows) {
    for (int r = 0; r < kRows; ++r) offset[r] = offsets[j + r];
    AddScores<kBits, kRows, kGroups>(q + j * width, width, offset, weight + j, keys, sum);
  }
  for (; j < heads; ++j) {
    offset[0] = offsets[j];
    AddScores<kBits, 1, kGroups>(q + j * width, width, offset, weight + j, keys, sum);
  }
}

template <KeyBits kBits, int kRows, int kGroups>
void ScoreT(const int8_t* q, const float* weight, int64_t heads, int64_t dim, const uint8_t* packed,
            const float* key_scale, Range range, float* score) {
  const int64_t width = IntWidth(kBits, dim);
  const int64_t bytes = IntGroupBytes(kBits, dim);
  const auto finish = [&](int64_t group, __m512 sum) {
    const int64_t key = group * kIntGroup;
    const int64_t left = range.begin + range.n - key;
    const auto mask = static_cast<__mmask16>(left < kIntGroup ? (1u << left) - 1 : 0xFFFFu);
    const __m512 scale = _mm512_maskz_loadu_ps(mask, key_scale + key);
    range.Store(group, _mm512_castps_si512(_mm512_mul_ps(sum, scale)), score);
  };
  const Offsets<kBits> offsets(q, heads, width);
  int64_t g = range.first_group();
  for (; g + kGroups <= range.end_group(); g += kGroups) {
    __m512 sum[kGroups];
    ScoreGroups<kBits, kRows, kGroups>(q, offsets, weight, heads, width,
                                       {packed + g * bytes, bytes}, sum);
    for (int i = 0; i < kGroups; ++i) finish(g + i, sum[i]);
  }
  for (; g < range.end_group(); ++g) {
    __m512 sum[1];
    ScoreGroups<kBits, kRows, 1>(q, offsets, weight, heads, width, {packed + g * bytes, bytes},
                                 sum);
    finish(g, sum[0]);
  }
}
template <KeyBits kBits>
void ScoreOf(const int8_t* q, const float* weight, int64_t heads, int64_t dim,
             const uint8_t* packed, const float* key_scale, Range range, float* score) {
  if (heads <= kFewRows) {
    switch (heads) {
      case 1:
        return ScoreT<kBits, 1, 6>(q, weight, heads, dim, packed, key_scale, range, score);
      case 2:
        return ScoreT<kBits, 2, 6>(q, weight, heads, dim, packed, key_scale, range, score);
      default:
        return ScoreT<kBits, 3, 6>(q, weight, heads, dim, packed, key_scale, range, score);
    }
  }
  if (heads % kTileRows != 0 && heads % 4 == 0)
    return ScoreT<kBits, 4, 5>(q, weight, heads, dim, packed, key_scale, range, score);
  ScoreT<kBits, kTileRows, kTileGroups>(q, weight, heads, dim, packed, key_scale, range, score);
}
void Score(KeyBits bits, const int8_t* q, const float* weight, int64_t heads, int64_t dim,
           const uint8_t* packed, const float* key_scale, int64_t begin, int64_t n, float* score) {
  if (bits == KeyBits::k8)
    return ScoreOf<KeyBits::k8>(q, weight, heads, dim, packed, key_scale, {begin, n}, score);
  ScoreOf<KeyBits::k4>(q, weight, heads, dim, packed, key_scale, {begin, n}, score);
}

template <KeyBits kBits, int kRows, int kGroups>
void DotTile(const int8_t* q, const Offsets<kBits>& offsets, int64_t row, int64_t width,
             Groups keys, Range range, int64_t group, int32_t* dots) {
  int32_t offset[kRows];
  for (int r = 0; r < kRows; ++r) offset[r] = offsets[row + r];
  __m512i dot[kRows][kGroups];
  Tile<kBits, kRows, kGroups>(q + row * width, width, offset, keys, dot);
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < kGroups; ++g) range.Store(group + g, dot[r][g], dots + (row + r) * range.n);
  }
}
template <KeyBits kBits, int kGroups>
void DotRows(const int8_t* q, const Offsets<kBits>& offsets, int64_t rows, int64_t width,
             Groups keys, Range range, int64_t group, int32_t* dots) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows)
    DotTile<kBits, kTileRows, kGroups>(q, offsets, r, width, keys, range, group, dots);
  for (; r < rows; ++r) DotTile<kBits, 1, kGroups>(q, offsets, r, width, keys, range, group, dots);
}
template <KeyBits kBits>
void DotsOf(const int8_t* q, int64_t rows, int64_t dim, const uint8_t* packed, Range range,
            int32_t* dots) {
  const int64_t width = IntWidth(kBits, dim);
  const int64_t bytes = IntGroupBytes(kBits, dim);
  const Offsets<kBits> offsets(q, rows, width);
  int64_t g = range.first_group();
  for (; g + kTileGroups <= range.end_group(); g += kTileGroups)
    DotRows<kBits, kTileGroups>(q, offsets, rows, width, {packed + g * bytes, bytes}, range, g,
                                dots);
  for (; g < range.end_group(); ++g)
    DotRows<kBits, 1>(q, offsets, rows, width, {packed + g * bytes, bytes}, range, g, dots);
}
void Dots(KeyBits bits, const int8_t* q, int64_t rows, int64_t dim, const uint8_t* packed,
          int64_t begin, int64_t n, int32_t* dot) {
  if (bits == KeyBits::k8) return DotsOf<KeyBits::k8>(q, rows, dim, packed, {begin, n}, dot);
  DotsOf<KeyBits::k4>(q, rows, dim, packed, {begin, n}, dot);
}
constexpr IntProducts kTable = {Dots, Score};
}  // namespace

namespace int_internal {
const IntProducts* Avx512Vnni() {
  static const bool has = CpuHasVnni();
  return has ? &kTable : nullptr;
}
}  // namespace int_internal
}  // namespace sluice::kernels
#else
namespace sluice::kernels::int_internal {
const IntProducts* Avx512Vnni() { return nullptr; }
}  // namespace sluice::kernels::int_internal
#endif
