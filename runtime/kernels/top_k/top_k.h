#ifndef SLUICE_RUNTIME_KERNELS_TOP_K_TOP_K_H_
#define SLUICE_RUNTIME_KERNELS_TOP_K_TOP_K_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
struct TopKCount {
  uint32_t count = 0;  // selected: min(k, selectable)
  uint32_t nans = 0;   // NaN scores met; never selected
};
// Bytes of scratch for rows of at most n scores.
inline constexpr int64_t TopKScratchBytes(int64_t n) {
  return (2 * n + 2 * 64 + 1024) * sizeof(uint32_t);
}
// Writes the indices of the k largest x, ascending. Ties go to the lowest index (-0 equals +0); NaN
// and -inf are never selected. k = 0 or n = 0 selects nothing. Exact for every input; the usual
// cost is one pass over x plus O(k).
TopKCount TopK(const float* x, int64_t n, int64_t k, uint32_t* index, void* scratch);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_TOP_K_TOP_K_H_
