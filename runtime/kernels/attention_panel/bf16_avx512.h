#ifndef SLUICE_RUNTIME_KERNELS_ATTENTION_PANEL_BF16_AVX512_H_
#define SLUICE_RUNTIME_KERNELS_ATTENTION_PANEL_BF16_AVX512_H_
// What the bf16 attention panels share: their packed forms and the softmax of sixteen rows. Only
// for files that are compiled for AVX512-BF16 and that check for it at run time; all of it is
// internal to them, so that none of it can be linked into code for other CPUs.
#include "sluice/runtime/kernels/attention_panel/attention_panel.h"

#if defined(__x86_64__) && defined(__AVX512BF16__)
#include <immintrin.h>

#include <cmath>
#include <cstring>

namespace sluice::kernels {
namespace {
constexpr int64_t kQueryPad = 32;        // rows of packed queries come in multiples of this
constexpr int64_t kTileWords = 16 * 16;  // 32-bit words, pairs of bf16, of a tile
constexpr int64_t Up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

inline int64_t PackedKeys(int64_t d) { return Up(d, 32) / 32 * 4 * kTileWords * 2; }
inline int64_t PackedValues(int64_t dv) { return 2 * (Up(dv, 16) / 16) * kTileWords * 2; }
inline int64_t PackedQueries(int64_t rows, int64_t d) { return Up(rows, kQueryPad) * Up(d, 32); }

inline void PackQueries(const float* q, int64_t rows, int64_t d, uint16_t* out) {
  const int64_t dp = Up(d, 32);
  std::memset(out, 0, Up(rows, kQueryPad) * dp * sizeof(uint16_t));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < d; i += 16) {
      const __mmask16 some = static_cast<__mmask16>(d - i < 16 ? (1u << (d - i)) - 1 : 0xFFFFu);
      const __m256bh h = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some, q + r * d + i));
      std::memcpy(out + r * dp + i, &h, sizeof h);  // rows are padded to 32
    }
  }
}
inline const uint8_t* Row(const PanelSource& s, int64_t j) {
  return static_cast<const uint8_t*>(s.base) + (s.ids != nullptr ? s.ids[j] : j) * s.row_bytes;
}
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
inline void PackKeyTiles(const PanelSource& s, int64_t n, int64_t d, uint16_t* packed) {
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
inline void PackValueTiles(const PanelSource& s, int64_t n, int64_t dv, uint16_t* packed) {
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
  const __m512 magic = _mm512_set1_ps(0x1.8p23f);
  const __m512 n = _mm512_add_ps(x, magic);
  const __m512 f = _mm512_sub_ps(x, _mm512_sub_ps(n, magic));
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

// The online softmax of sixteen rows at once: their maxima and their sums each come out as one
// vector. For sixteen rows in turn: FindTops, Exponentiate of each row, AddSums.
class SoftmaxRows {
 public:
  explicit SoftmaxRows(const AttentionPanel& panel)
      : p_(panel),
        all_(panel.n == kPanelKeys ? ~uint64_t{0} : (uint64_t{1} << panel.n) - 1),
        plain_(panel.softcap <= 0 && panel.bias == nullptr && panel.mask == nullptr &&
               panel.n == kPanelKeys) {}

  // Whether one of rows [first, first + n) sees a key.
  bool Wanted(int64_t first, int64_t n) const {
    if (p_.mask == nullptr) return true;
    uint64_t any = 0;
    for (int64_t r = 0; r < n; ++r) any |= p_.mask[first + r];
    return (any & all_) != 0;
  }

  // Finishes the logits s [16, 64] of rows [first, first + 16), raises the running maxima to theirs
  // and rescales what was summed under lower ones.
  inline void FindTops(int64_t first, float* s) {
    if (!plain_) {
      for (int64_t r = 0; r < 16 && first + r < p_.rows; ++r)
        Adjust(s + r * kPanelKeys, p_.mask != nullptr ? p_.mask[first + r] & all_ : all_);
    }
    __m512 v[16];
    for (int r = 0; r < 16; ++r) {
      const float* x = s + static_cast<int64_t>(r) * kPanelKeys;
      v[r] = _mm512_max_ps(_mm512_max_ps(_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)),
                           _mm512_max_ps(_mm512_loadu_ps(x + 32), _mm512_loadu_ps(x + 48)));
    }
    top_ = Reduce16(v, Max());
    const __mmask16 rows = Live(first);
    const __m512 low = _mm512_set1_ps(-HUGE_VALF);
    const __m512 old = _mm512_mask_loadu_ps(low, rows, p_.m + first);
    const __m512 m = _mm512_max_ps(old, top_);
    const __mmask16 raised = _mm512_mask_cmp_ps_mask(rows, top_, old, _CMP_GT_OQ);
    if (raised != 0) Rescale(first, raised, old, m);
    _mm512_store_ps(shift_, _mm512_mask_blend_ps(_mm512_cmp_ps_mask(m, low, _CMP_EQ_OQ), m,
                                                 _mm512_setzero_ps()));
  }

  // prob [16, 64]: row r of the logits as probabilities relative to the running maximum.
  inline void Exponentiate(const float* s, uint16_t* prob, int64_t r) {
    const __m512 shift = _mm512_set1_ps(shift_[r]);
    __m512 x[4];
    for (int64_t i = 0; i < 4; ++i)
      x[i] = Exp2(_mm512_sub_ps(_mm512_loadu_ps(s + r * kPanelKeys + 16 * i), shift));
    const __m512bh lo = _mm512_cvtne2ps_pbh(x[1], x[0]);
    const __m512bh hi = _mm512_cvtne2ps_pbh(x[3], x[2]);
    std::memcpy(prob + r * kPanelKeys, &lo, sizeof lo);
    std::memcpy(prob + r * kPanelKeys + 32, &hi, sizeof hi);
    sums_[r] = _mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3]));
  }

  inline void AddSums(int64_t first) {
    const __mmask16 seen = _mm512_mask_cmp_ps_mask(Live(first), top_, _mm512_set1_ps(-HUGE_VALF),
                                                   _CMP_NEQ_UQ);  // true for a NaN
    const __m512 sum = Reduce16(sums_, Add());
    const __m512 l = _mm512_add_ps(_mm512_maskz_loadu_ps(seen, p_.l + first), sum);
    _mm512_mask_storeu_ps(p_.l + first, seen, l);
    gains_ = _mm512_mask_max_ps(gains_, seen, gains_, _mm512_div_ps(sum, l));
  }

  // The largest share of its new normaliser that any row gained.
  float gain() const { return _mm512_reduce_max_ps(gains_); }

 private:
  __mmask16 Live(int64_t first) const {
    return static_cast<__mmask16>(p_.rows <= first        ? 0
                                  : p_.rows - first >= 16 ? 0xFFFF
                                                          : (1u << (p_.rows - first)) - 1);
  }

  // What only some calls have: softcap, bias and mask, applied to a row of logits in place.
  void Adjust(float* row, uint64_t visible) const {
    if (p_.softcap > 0) {
      for (int64_t j = 0; j < kPanelKeys; ++j)
        row[j] = p_.softcap * kLog2E * std::tanh(row[j] * kLn2 / p_.softcap);
    }
    for (int64_t i = 0; i < kPanelKeys; i += 16) {
      __m512 x = _mm512_loadu_ps(row + i);
      if (p_.bias != nullptr) x = _mm512_add_ps(x, _mm512_loadu_ps(p_.bias + i));
      x = _mm512_mask_blend_ps(static_cast<__mmask16>(visible >> i), _mm512_set1_ps(-HUGE_VALF), x);
      _mm512_storeu_ps(row + i, x);
    }
  }

  // Moves the sums and outputs of the raised rows from maximum `old` to m. An empty row has no
  // output to move.
  void Rescale(int64_t first, __mmask16 raised, __m512 old, __m512 m) const {
    const __m512 l = _mm512_maskz_loadu_ps(raised, p_.l + first);
    alignas(64) float shrink[16];
    _mm512_store_ps(shrink, Exp2(_mm512_sub_ps(old, m)));
    _mm512_mask_storeu_ps(p_.l + first, raised, _mm512_mul_ps(l, _mm512_load_ps(shrink)));
    _mm512_mask_storeu_ps(p_.m + first, raised, m);
    for (unsigned left = _mm512_mask_cmp_ps_mask(raised, l, _mm512_setzero_ps(), _CMP_NEQ_UQ);
         left != 0; left &= left - 1) {
      const int64_t r = static_cast<int64_t>(__builtin_ctz(left));
      float* o = p_.o + (first + r) * p_.dv;
      for (int64_t i = 0; i < p_.dv; i += 16)
        _mm512_storeu_ps(o + i, _mm512_mul_ps(_mm512_loadu_ps(o + i), _mm512_set1_ps(shrink[r])));
    }
  }

  const AttentionPanel p_;  // of its own, so that what is stored cannot change it
  const uint64_t all_;
  const bool plain_;
  __m512 gains_ = _mm512_setzero_ps();
  __m512 top_ = _mm512_setzero_ps();
  __m512 sums_[16];
  alignas(64) float shift_[16];  // the running maximum, 0 where nothing has been seen
};
}  // namespace
}  // namespace sluice::kernels
#endif
#endif  // SLUICE_RUNTIME_KERNELS_ATTENTION_PANEL_BF16_AVX512_H_
