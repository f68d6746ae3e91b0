// The attention panel on AMX bf16 tiles. Highway has no AMX, so this one file uses intrinsics; it
// is compiled for the instruction set that it checks for at run time, and nothing here runs before
// that check.
#include "sluice/runtime/kernels/attention_panel/attention_panel.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstring>

namespace sluice::kernels {
namespace {
constexpr int64_t kRows = 32;            // rows worked on at once: two tiles
constexpr int64_t kTileWords = 16 * 16;  // 32-bit words of a tile
constexpr int64_t Up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

bool CpuHasAmx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = (d >> 24 & 1) && (d >> 22 & 1),
             avx512 = (b >> 16 & 1) && (b >> 30 & 1) && (b >> 31 & 1) && (b >> 17 & 1);
  if (!tiles || !avx512 || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

int64_t PackedKeys(int64_t d) { return Up(d, 32) / 32 * 4 * kTileWords * 2; }
int64_t PackedValues(int64_t dv) { return 2 * (Up(dv, 16) / 16) * kTileWords * 2; }
int64_t PackedQueries(int64_t rows, int64_t d) { return Up(rows, kRows) * Up(d, 32); }
// Logits and probabilities (bf16) of two groups of rows, and an output strip of one.
int64_t ScratchFloats(int64_t /*rows*/, int64_t dv) {
  return 2 * kRows * kPanelKeys + kRows * kPanelKeys + kRows * Up(dv, 16);
}

void PackQueries(const float* q, int64_t rows, int64_t d, uint16_t* out) {
  const int64_t dp = Up(d, 32);
  std::memset(out, 0, Up(rows, kRows) * dp * sizeof(uint16_t));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < d; i += 16) {
      const __mmask16 some = static_cast<__mmask16>(d - i < 16 ? (1u << (d - i)) - 1 : 0xFFFFu);
      const __m256bh h = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some, q + r * d + i));
      std::memcpy(out + r * dp + i, &h, sizeof h);  // rows are padded to 32
    }
  }
}
const uint8_t* Row(const PanelSource& s, int64_t j) {
  return static_cast<const uint8_t*>(s.base) + (s.ids != nullptr ? s.ids[j] : j) * s.row_bytes;
}
// The tile intrinsics of GCC do not tell the compiler that they touch memory.
inline void Fence() { asm volatile("" ::: "memory"); }
// Transposes 16 rows of 16 32-bit words.
inline void Transpose16(__m512i r[16], uint32_t* out) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(out + 16 * i, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_si512(out + 16 * (i + 8), _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD));
    _mm512_storeu_si512(out + 16 * (i + 4), _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
    _mm512_storeu_si512(out + 16 * (i + 12), _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD));
  }
}
// Tile [chunk of 32 dims][group of 16 keys]: word (p, n) holds dims 2p and 2p + 1 of key n.
void PackKeysAmx(const PanelSource& s, int64_t n, int64_t d, uint16_t* packed) {
  uint32_t* out = reinterpret_cast<uint32_t*>(packed);
  for (int64_t c = 0; c * 32 < d; ++c) {
    const int64_t dims = d - c * 32 < 32 ? d - c * 32 : 32;
    const __mmask32 some = dims == 32 ? ~__mmask32{0} : (__mmask32{1} << dims) - 1;
    for (int64_t g = 0; g < 4; ++g) {
      __m512i r[16];
      for (int64_t j = 0; j < 16; ++j) {
        const int64_t key = g * 16 + j;
        r[j] =
            key < n ? _mm512_maskz_loadu_epi16(some, Row(s, key) + c * 64) : _mm512_setzero_si512();
      }
      Transpose16(r, out + (c * 4 + g) * kTileWords);
    }
  }
}
// Tile [chunk of 32 keys][group of 16 columns]: word (p, n) holds column n of keys 2p and 2p + 1.
void PackValuesAmx(const PanelSource& s, int64_t n, int64_t dv, uint16_t* packed) {
  uint32_t* out = reinterpret_cast<uint32_t*>(packed);
  const int64_t groups = Up(dv, 16) / 16;
  for (int64_t p = 0; p < kPanelKeys / 2; ++p) {
    uint32_t* at = out + p / 16 * groups * kTileWords + p % 16 * 16;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t cols = dv - g * 16 < 16 ? dv - g * 16 : 16;
      const __mmask16 some = static_cast<__mmask16>((1u << cols) - 1);
      const __m256i a = 2 * p < n ? _mm256_maskz_loadu_epi16(some, Row(s, 2 * p) + g * 32)
                                  : _mm256_setzero_si256();
      const __m256i b = 2 * p + 1 < n ? _mm256_maskz_loadu_epi16(some, Row(s, 2 * p + 1) + g * 32)
                                      : _mm256_setzero_si256();
      _mm512_storeu_si512(at + g * kTileWords,
                          _mm512_or_si512(_mm512_cvtepu16_epi32(a),
                                          _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16)));
    }
  }
}

// 2^x for x <= 0, relative error 3e-6: well below the rounding of a bf16 probability. What lies
// under 2^-126 becomes a denormal, which the conversion to bf16 turns into 0.
inline __m512 Exp2(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-126.5f), x);  // in this order a NaN stays
  const __m512 magic = _mm512_set1_ps(0x1.8p23f), n = _mm512_add_ps(x, magic),
               f = _mm512_sub_ps(x, _mm512_sub_ps(n, magic));
  __m512 p = _mm512_set1_ps(9.582850e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.590643e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4024099e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9312419e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}
struct Max {
  __m512 operator()(__m512 a, __m512 b) const { return _mm512_max_ps(a, b); }
};
struct Add {
  __m512 operator()(__m512 a, __m512 b) const { return _mm512_add_ps(a, b); }
};
// Reduces 16 vectors at once: lane i of the result is the reduction of v[i]. Four shuffles a row
// fewer than one by one.
template <class Op>
inline __m512 Reduce16(const __m512 v[16], Op op) {
  __m512 a[8], b[4];
  for (int i = 0; i < 8; ++i)
    a[i] =
        op(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 4; ++i) {
    const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
    b[i] =
        op(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  const __m512 c =
      op(_mm512_shuffle_f32x4(b[0], b[1], 0x88), _mm512_shuffle_f32x4(b[0], b[1], 0xDD));
  const __m512 d =
      op(_mm512_shuffle_f32x4(b[2], b[3], 0x88), _mm512_shuffle_f32x4(b[2], b[3], 0xDD));
  return op(_mm512_shuffle_f32x4(c, d, 0x88), _mm512_shuffle_f32x4(c, d, 0xDD));
}

float Attend(const AttentionPanel& p, const uint16_t* q, const uint16_t* k, const uint16_t* v) {
  const int64_t dp = Up(p.d, 32), groups = p.dv / 16;
  const uint64_t all = p.n == kPanelKeys ? ~uint64_t{0} : (uint64_t{1} << p.n) - 1;
  // Per group of rows: logits and probabilities are kept twice, so that three groups can be in
  // flight.
  float* logits[2] = {p.scratch, p.scratch + kRows * kPanelKeys};
  float* after = p.scratch + 2 * kRows * kPanelKeys;
  uint16_t* probs[2] = {reinterpret_cast<uint16_t*>(after),
                        reinterpret_cast<uint16_t*>(after) + kRows * kPanelKeys};
  float* strip = after + kRows * kPanelKeys;
  const TileConfig config;
  Fence();
  _tile_loadconfig(&config);
  const auto rows_at = [&](int64_t r0) { return p.rows - r0 < kRows ? p.rows - r0 : kRows; };
  const auto wanted = [&](int64_t r0) {
    if (p.mask == nullptr) return true;
    uint64_t any = 0;
    for (int64_t r = 0; r < rows_at(r0); ++r) any |= p.mask[r0 + r];
    return (any & all) != 0;
  };
  const auto next_wanted = [&](int64_t r0) {
    while (r0 < p.rows && !wanted(r0)) r0 += kRows;
    return r0;
  };
  // Logits of 32 rows and 32 keys, from key group g.
  const auto multiply = [&](int64_t r0, float* s, int64_t g) {
    Fence();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t c = 0; c * 32 < p.d; ++c) {
      _tile_loadd(4, q + r0 * dp + c * 32, static_cast<int>(dp * 2));
      _tile_loadd(5, q + (r0 + 16) * dp + c * 32, static_cast<int>(dp * 2));
      _tile_loadd(6, k + (c * 4 + g) * kTileWords * 2, 64);
      _tile_loadd(7, k + (c * 4 + g + 1) * kTileWords * 2, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, s + g * 16, kPanelKeys * 4);
    _tile_stored(1, s + g * 16 + 16, kPanelKeys * 4);
    _tile_stored(2, s + 16 * kPanelKeys + g * 16, kPanelKeys * 4);
    _tile_stored(3, s + 16 * kPanelKeys + g * 16 + 16, kPanelKeys * 4);
    Fence();
  };
  // Output columns of value groups [g0, g1). Whole groups of rows accumulate in place, a ragged one
  // through a strip.
  const auto accumulate = [&](int64_t r0, const uint16_t* prob, int64_t g0, int64_t g1) {
    const int64_t rows = rows_at(r0);
    const bool whole = rows == kRows;
    float* o = whole ? p.o + r0 * p.dv : strip;
    if (!whole) {
      std::memset(strip, 0, kRows * p.dv * sizeof(float));
      std::memcpy(strip, p.o + r0 * p.dv, rows * p.dv * sizeof(float));
    }
    const int stride = static_cast<int>(p.dv * 4);
    Fence();
    _tile_loadd(4, prob, kPanelKeys * 2);
    _tile_loadd(5, prob + 32, kPanelKeys * 2);
    _tile_loadd(6, prob + 16 * kPanelKeys, kPanelKeys * 2);
    _tile_loadd(7, prob + 16 * kPanelKeys + 32, kPanelKeys * 2);
    for (int64_t g = g0; g < g1; ++g) {
      _tile_loadd(0, o + g * 16, stride);
      _tile_loadd(1, o + 16 * p.dv + g * 16, stride);
      _tile_loadd(2, v + g * kTileWords * 2, 64);
      _tile_loadd(3, v + (groups + g) * kTileWords * 2, 64);
      _tile_dpbf16ps(0, 4, 2);
      _tile_dpbf16ps(1, 6, 2);
      _tile_dpbf16ps(0, 5, 3);
      _tile_dpbf16ps(1, 7, 3);
      _tile_stored(0, o + g * 16, stride);
      _tile_stored(1, o + 16 * p.dv + g * 16, stride);
    }
    Fence();
    if (!whole) std::memcpy(p.o + r0 * p.dv, strip, rows * p.dv * sizeof(float));
  };
  // What only some calls have: softcap, bias and mask, applied to a row of logits in place.
  const bool plain = p.softcap <= 0 && p.bias == nullptr && p.mask == nullptr && p.n == kPanelKeys;
  const auto adjust = [&](float* row, uint64_t visible) {
    if (p.softcap > 0) {
      for (int64_t j = 0; j < kPanelKeys; ++j)
        row[j] = p.softcap * kLog2E * std::tanh(row[j] * kLn2 / p.softcap);
    }
    for (int64_t i = 0; i < kPanelKeys; i += 16) {
      __m512 x = _mm512_loadu_ps(row + i);
      if (p.bias != nullptr) x = _mm512_add_ps(x, _mm512_loadu_ps(p.bias + i));
      x = _mm512_mask_blend_ps(static_cast<__mmask16>(visible >> i), _mm512_set1_ps(-HUGE_VALF), x);
      _mm512_storeu_ps(row + i, x);
    }
  };
  // Sixteen rows at once: their maxima and their sums each come out as one vector.
  struct Half {
    __m512 top, sums[16];
    alignas(64) float shift[16];  // the running maximum, 0 where nothing has been seen
  } half;
  const auto live = [&](int64_t first) {
    return static_cast<__mmask16>(p.rows <= first        ? 0
                                  : p.rows - first >= 16 ? 0xFFFF
                                                         : (1u << (p.rows - first)) - 1);
  };
  const auto find_tops = [&](int64_t first, float* s) {
    if (!plain) {
      for (int64_t r = 0; r < 16 && first + r < p.rows; ++r)
        adjust(s + r * kPanelKeys, p.mask != nullptr ? p.mask[first + r] & all : all);
    }
    __m512 v[16];
    for (int r = 0; r < 16; ++r) {
      const float* x = s + static_cast<int64_t>(r) * kPanelKeys;
      v[r] = _mm512_max_ps(_mm512_max_ps(_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)),
                           _mm512_max_ps(_mm512_loadu_ps(x + 32), _mm512_loadu_ps(x + 48)));
    }
    half.top = Reduce16(v, Max());
    const __mmask16 rows = live(first);
    const __m512 low = _mm512_set1_ps(-HUGE_VALF),
                 old = _mm512_mask_loadu_ps(low, rows, p.m + first);
    const __m512 m = _mm512_max_ps(old, half.top);
    const __mmask16 raised = _mm512_mask_cmp_ps_mask(rows, half.top, old, _CMP_GT_OQ);
    if (raised != 0) {
      const __m512 l = _mm512_maskz_loadu_ps(raised, p.l + first);
      alignas(64) float shrink[16];
      _mm512_store_ps(shrink, Exp2(_mm512_sub_ps(old, m)));
      _mm512_mask_storeu_ps(p.l + first, raised, _mm512_mul_ps(l, _mm512_load_ps(shrink)));
      _mm512_mask_storeu_ps(p.m + first, raised, m);
      for (unsigned left = _mm512_mask_cmp_ps_mask(raised, l, _mm512_setzero_ps(), _CMP_NEQ_UQ);
           left != 0; left &= left - 1) {
        const int64_t r = static_cast<int64_t>(__builtin_ctz(left));
        float* o = p.o + (first + r) * p.dv;
        for (int64_t i = 0; i < p.dv; i += 16)
          _mm512_storeu_ps(o + i, _mm512_mul_ps(_mm512_loadu_ps(o + i), _mm512_set1_ps(shrink[r])));
      }
    }
    _mm512_store_ps(half.shift, _mm512_mask_blend_ps(_mm512_cmp_ps_mask(m, low, _CMP_EQ_OQ), m,
                                                     _mm512_setzero_ps()));
  };
  const auto exponentiate = [&](const float* s, uint16_t* prob, int64_t r) {
    const __m512 shift = _mm512_set1_ps(half.shift[r]);
    __m512 x[4];
    for (int64_t i = 0; i < 4; ++i)
      x[i] = Exp2(_mm512_sub_ps(_mm512_loadu_ps(s + r * kPanelKeys + 16 * i), shift));
    const __m512bh lo = _mm512_cvtne2ps_pbh(x[1], x[0]), hi = _mm512_cvtne2ps_pbh(x[3], x[2]);
    std::memcpy(prob + r * kPanelKeys, &lo, sizeof lo);
    std::memcpy(prob + r * kPanelKeys + 32, &hi, sizeof hi);
    half.sums[r] = _mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3]));
  };
  __m512 gains = _mm512_setzero_ps();
  const auto add_sums = [&](int64_t first) {
    const __mmask16 seen = _mm512_mask_cmp_ps_mask(
        live(first), half.top, _mm512_set1_ps(-HUGE_VALF), _CMP_NEQ_UQ);  // true for a NaN
    const __m512 sum = Reduce16(half.sums, Add()),
                 l = _mm512_add_ps(_mm512_maskz_loadu_ps(seen, p.l + first), sum);
    _mm512_mask_storeu_ps(p.l + first, seen, l);
    gains = _mm512_mask_max_ps(gains, seen, gains, _mm512_div_ps(sum, l));
  };
  // Tiles and vectors are different parts of the core, but its window holds only a few rows: so the
  // softmax of one group is interleaved with the logits of the next and the output of the previous
  // one.
  int64_t turn = 0, r0 = next_wanted(0), previous = p.rows;
  if (r0 < p.rows) {
    multiply(r0, logits[0], 0);
    multiply(r0, logits[0], 2);
  }
  for (; r0 < p.rows; turn ^= 1) {
    const int64_t next = next_wanted(r0 + kRows);
    for (int64_t h = 0; h < 2; ++h) {
      float* s = logits[turn] + h * 16 * kPanelKeys;
      uint16_t* prob = probs[turn] + h * 16 * kPanelKeys;
      find_tops(r0 + h * 16, s);
      if (next < p.rows) multiply(next, logits[turn ^ 1], h * 2);
      for (int64_t r = 0; r < 8; ++r) exponentiate(s, prob, r);
      if (previous < p.rows)
        accumulate(previous, probs[turn ^ 1], h * groups / 2, (h + 1) * groups / 2);
      for (int64_t r = 8; r < 16; ++r) exponentiate(s, prob, r);
      add_sums(r0 + h * 16);
    }
    previous = r0;
    r0 = next;
  }
  if (previous < p.rows) accumulate(previous, probs[turn ^ 1], 0, groups);
  const float gain = _mm512_reduce_max_ps(gains);
  _tile_release();
  return gain;
}
constexpr AmxAttention kTable = {PackedKeys,  PackedValues, PackedQueries, ScratchFloats,
                                 PackQueries, PackKeysAmx,  PackValuesAmx, Attend};
}  // namespace

const AmxAttention* GetAmxAttention() {
  static const bool has = CpuHasAmx();
  return has ? &kTable : nullptr;
}
}  // namespace sluice::kernels
#else
namespace sluice::kernels {
const AmxAttention* GetAmxAttention() { return nullptr; }
}  // namespace sluice::kernels
#endif
