#ifndef SLUICE_RUNTIME_KERNELS_THRESHOLD_THRESHOLD_H_
#define SLUICE_RUNTIME_KERNELS_THRESHOLD_THRESHOLD_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
// Writes the indices of x[i] >= tau, ascending; NaN never passes. Returns how many. `index` holds
// n. O(n).
int64_t ThresholdCompress(const float* x, int64_t n, float tau, uint32_t* index);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_THRESHOLD_THRESHOLD_H_
