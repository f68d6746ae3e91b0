#ifndef SLUICE_RUNTIME_KERNELS_TOP_P_TOP_P_H_
#define SLUICE_RUNTIME_KERNELS_TOP_P_TOP_P_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
// Bytes of scratch for rows of at most n weights.
inline constexpr int64_t TopPScratchBytes(int64_t n) { return n * 8 + 4096 * sizeof(double); }
// Writes, ascending, the indices of the fewest largest weights whose sum reaches p * total (float
// sums never reach p itself, so the comparison is relative to the total). Ties go to the lowest
// index; NaN and negative weights are never selected; p >= 1 selects every other weight, zeros
// included; p <= 0 selects nothing. Returns how many. O(n).
int64_t TopP(const float* x, int64_t n, float p, uint32_t* index, void* scratch);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_TOP_P_TOP_P_H_
