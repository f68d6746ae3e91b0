#ifndef SLUICE_API_DTYPE_H_
#define SLUICE_API_DTYPE_H_
// Element types and their scalar conversions (the reference for kernels/convert).
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
enum class DType : int32_t { kF32 = 0, kBF16 = 1, kF16 = 2, kI8 = 3 };

constexpr int64_t DTypeBytes(DType t) { return t == DType::kF32 ? 4 : t == DType::kI8 ? 1 : 2; }
constexpr const char* DTypeName(DType t) {
  return t == DType::kF32 ? "f32" : t == DType::kBF16 ? "bf16" : t == DType::kF16 ? "f16" : "i8";
}

inline float BitsToF32(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
inline uint32_t F32ToBits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return bits;
}

inline float BF16ToF32(uint16_t b) { return BitsToF32(static_cast<uint32_t>(b) << 16); }
// Round to nearest even; NaN stays NaN.
inline uint16_t F32ToBF16(float f) {
  const uint32_t u = F32ToBits(f);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((u >> 16) | 0x40);
  return static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

inline float F16ToF32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1Fu, mantissa = h & 0x3FFu;
  if (exponent == 31) return BitsToF32(sign | 0x7F800000u | (mantissa << 13));
  if (exponent == 0) {
    const float v = static_cast<float>(mantissa) * 0x1p-24f;
    return BitsToF32(sign | F32ToBits(v));
  }
  return BitsToF32(sign | ((exponent + 112) << 23) | (mantissa << 13));
}
// Round to nearest even; overflow becomes infinity, NaN stays NaN.
inline uint16_t F32ToF16(float f) {
  const uint32_t u = F32ToBits(f), sign = (u >> 16) & 0x8000u, a = u & 0x7FFFFFFFu;
  if (a > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
  if (a >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
  if (a < 0x38800000u) {  // subnormal half: adding 0.5 puts the rounded mantissa in the low bits
    return static_cast<uint16_t>(sign | (F32ToBits(BitsToF32(a) + 0.5f) - F32ToBits(0.5f)));
  }
  return static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xFFFu + ((a >> 13) & 1u)) >> 13));
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_DTYPE_H_
