#ifndef SLUICE_API_DTYPE_H_
#define SLUICE_API_DTYPE_H_
// Element types and their scalar conversions (the reference for kernels/convert).
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// q8_0 and q4_0 as ggml lays them out: blocks of 32 elements that share an f16 scale, which stands
// first. Rows of these are whole blocks.
enum class DType : int32_t { kF32 = 0, kBF16 = 1, kF16 = 2, kI8 = 3, kQ8_0 = 4, kQ4_0 = 5 };

inline constexpr int64_t kQuantBlock = 32;    // elements
inline constexpr int64_t kQ8BlockBytes = 34;  // a block: scale, 32 signed bytes
inline constexpr int64_t kQ4BlockBytes =
    18;  // scale, 16 bytes: elements 0-15 low, 16-31 high, less 8

constexpr bool InBlocks(DType t) { return t == DType::kQ8_0 || t == DType::kQ4_0; }
// Of n elements; for types in blocks a multiple of kQuantBlock.
constexpr int64_t DTypeBytes(DType t, int64_t n) {
  switch (t) {
    case DType::kF32:
      return 4 * n;
    case DType::kBF16:
    case DType::kF16:
      return 2 * n;
    case DType::kI8:
      return n;
    case DType::kQ8_0:
      return n / kQuantBlock * kQ8BlockBytes;
    case DType::kQ4_0:
      return n / kQuantBlock * kQ4BlockBytes;
  }
  return 0;
}
constexpr const char* DTypeName(DType t) {
  switch (t) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF16:
      return "f16";
    case DType::kI8:
      return "i8";
    case DType::kQ8_0:
      return "q8_0";
    case DType::kQ4_0:
      return "q4_0";
  }
  return "unknown";
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
// Element i of a row in blocks.
inline float Q8ToF32(const void* row, int64_t i) {
  const auto* block = static_cast<const uint8_t*>(row) + i / kQuantBlock * kQ8BlockBytes;
  uint16_t scale;
  std::memcpy(&scale, block, sizeof scale);
  return F16ToF32(scale) * static_cast<float>(static_cast<int8_t>(block[2 + i % kQuantBlock]));
}
inline float Q4ToF32(const void* row, int64_t i) {
  const auto* block = static_cast<const uint8_t*>(row) + i / kQuantBlock * kQ4BlockBytes;
  uint16_t scale;
  std::memcpy(&scale, block, sizeof scale);
  const int64_t at = i % kQuantBlock;
  const int nibble = at < 16 ? block[2 + at] & 15 : block[2 + at - 16] >> 4;
  return F16ToF32(scale) * static_cast<float>(nibble - 8);
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
