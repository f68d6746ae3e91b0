#ifndef SLUICE_RUNTIME_KERNELS_INT_SCORE_INT_SCORE_H_
#define SLUICE_RUNTIME_KERNELS_INT_SCORE_INT_SCORE_H_
#include <cstddef>
#include <cstdint>

namespace sluice::kernels {
// Scores in integers: products of 8-bit queries with keys of 8 or 4 bits, each row with a scale of
// its own. For selection only. Dot products are exact for widths up to 2^16.
enum class KeyBits : uint8_t { k8, k4 };

// Keys are packed in groups, so that a product with four elements of sixteen keys needs no shuffle:
// [group][quad][16 keys][4 bytes], an element of key j of a quad in byte j * 4 + element. 8 bits:
// the element + 128, a quad a row of 64 bytes. 4 bits: the element + 8, quads 2i and 2i + 1 in the
// low and high halves of the bytes of row i.
inline constexpr int64_t kIntGroup = 16;

// What a row of packed keys and of queries is padded to with zeros.
constexpr int64_t IntWidth(KeyBits bits, int64_t dim) {
  const int64_t to = bits == KeyBits::k8 ? 4 : 8;
  return (dim + to - 1) / to * to;
}
constexpr int64_t IntGroupBytes(KeyBits bits, int64_t dim) {
  return IntWidth(bits, dim) * kIntGroup / (bits == KeyBits::k8 ? 1 : 2);
}
constexpr int64_t IntKeyBytes(KeyBits bits, int64_t keys, int64_t dim) {
  return (keys + kIntGroup - 1) / kIntGroup * IntGroupBytes(bits, dim);
}

// out [n] = x in whole numbers from -limit to limit, ties to even; returns the scale, max |x| /
// limit, 0 for zeros. Where an element is no finite number the scale is NaN and out is 0.
float QuantiseInt(const float* x, int64_t n, int32_t limit, int8_t* out);
inline constexpr int32_t IntLimit(KeyBits bits) { return bits == KeyBits::k8 ? 127 : 7; }

// Writes key number `at`, key [dim] of at most IntLimit, into packed keys. Different keys may be
// written at once.
void PackIntKey(KeyBits bits, const int8_t* key, int64_t dim, int64_t at, uint8_t* packed);

// dot [rows, n] = q [rows, IntWidth(dim)] . packed keys [begin, begin + n). O(rows n dim).
void IntDots(KeyBits bits, const int8_t* q, int64_t rows, int64_t dim, const uint8_t* packed,
             int64_t begin, int64_t n, int32_t* dot);

// IndexScore in integers: score[s] = key_scale[begin + s] * sum_j weight[j] * max(0, q[j] . key s)
// for keys [begin, begin + n); weight[j] holds the scale of q[j] as a factor. A weight or scale of
// NaN makes the score NaN. q [heads, IntWidth(dim)]. O(n heads dim).
void IntScore(KeyBits bits, const int8_t* q, const float* weight, int64_t heads, int64_t dim,
              const uint8_t* packed, const float* key_scale, int64_t begin, int64_t n,
              float* score);

// The two on one unit, for tests: the AVX512-VNNI one, or null where the CPU has none.
struct IntProducts {
  void (*dots)(KeyBits, const int8_t*, int64_t, int64_t, const uint8_t*, int64_t, int64_t,
               int32_t*);
  void (*score)(KeyBits, const int8_t*, const float*, int64_t, int64_t, const uint8_t*,
                const float*, int64_t, int64_t, float*);
};
namespace int_internal {
const IntProducts* Avx512Vnni();
const IntProducts* Portable();  // Highway's, of the chosen target
}  // namespace int_internal
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_INT_SCORE_INT_SCORE_H_
