#include "sluice/runtime/kernels/int_score/int_score.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/int_score/int_score.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/int_score/int_score-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(IntDots);
HWY_EXPORT(IntScore);
HWY_EXPORT(QuantiseInt);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
namespace {
void PortableDots(KeyBits bits, const int8_t* q, int64_t rows, int64_t dim, const uint8_t* packed,
                  int64_t begin, int64_t n, int32_t* dot) {
  HWY_DYNAMIC_DISPATCH(IntDots)(bits, q, rows, dim, packed, begin, n, dot);
}
void PortableScore(KeyBits bits, const int8_t* q, const float* weight, int64_t heads, int64_t dim,
                   const uint8_t* packed, const float* key_scale, int64_t begin, int64_t n,
                   float* score) {
  HWY_DYNAMIC_DISPATCH(IntScore)
  (bits, q, weight, heads, dim, packed, key_scale, begin, n, score);
}
constexpr IntProducts kPortable = {PortableDots, PortableScore};
const IntProducts& Best() {
  const IntProducts* vnni = int_internal::Avx512Vnni();
  return vnni != nullptr ? *vnni : kPortable;
}
}  // namespace
namespace int_internal {
const IntProducts* Portable() { return &kPortable; }
}  // namespace int_internal

float QuantiseInt(const float* x, int64_t n, int32_t limit, int8_t* out) {
  return HWY_DYNAMIC_DISPATCH(QuantiseInt)(x, n, limit, out);
}

void PackIntKey(KeyBits bits, const int8_t* key, int64_t dim, int64_t at, uint8_t* packed) {
  const int64_t width = IntWidth(bits, dim);
  uint8_t* to = packed + at / kIntGroup * IntGroupBytes(bits, dim) + at % kIntGroup * 4;
  const auto element = [&](int64_t i, int32_t offset) {
    return static_cast<uint8_t>((i < dim ? key[i] : 0) + offset);
  };
  for (int64_t i = 0; i < width; i += bits == KeyBits::k8 ? 4 : 8, to += 4 * kIntGroup) {
    for (int64_t e = 0; e < 4; ++e) {
      to[e] = bits == KeyBits::k8
                  ? element(i + e, 128)
                  : static_cast<uint8_t>(element(i + e, 8) | (element(i + 4 + e, 8) << 4));
    }
  }
}

void IntDots(KeyBits bits, const int8_t* q, int64_t rows, int64_t dim, const uint8_t* packed,
             int64_t begin, int64_t n, int32_t* dot) {
  Best().dots(bits, q, rows, dim, packed, begin, n, dot);
}
void IntScore(KeyBits bits, const int8_t* q, const float* weight, int64_t heads, int64_t dim,
              const uint8_t* packed, const float* key_scale, int64_t begin, int64_t n,
              float* score) {
  Best().score(bits, q, weight, heads, dim, packed, key_scale, begin, n, score);
}
}  // namespace sluice::kernels
#endif
