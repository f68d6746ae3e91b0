#ifndef SLUICE_RUNTIME_KERNELS_ROPE_ROPE_H_
#define SLUICE_RUNTIME_KERNELS_ROPE_ROPE_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
enum class RopeLayout : uint8_t {
  kInterleaved,  // pairs (2i, 2i + 1): Llama GGUF files
  kHalves,       // pairs (i, i + d/2): GPT-NeoX
};
// cos and sin [d/2] of one position: angle(i) = position * base^(-2i/d), in double.
void RopeAngles(double position, double base, int64_t d, float* cos, float* sin);
// Rotates x [d] in place; d even.
void RopeRotate(float* x, int64_t d, const float* cos, const float* sin, RopeLayout layout);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_ROPE_ROPE_H_
