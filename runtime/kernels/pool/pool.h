#ifndef SLUICE_RUNTIME_KERNELS_POOL_POOL_H_
#define SLUICE_RUNTIME_KERNELS_POOL_POOL_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
enum class PoolKind : uint8_t { kMean, kMax, kMin };
// Reduces n rows (row j at in + j * stride elements of `type`) of width d to out [d]. n = 0: zeros.
// NaN in a column makes its result NaN, of every kind. O(n d).
void Pool(PoolKind kind, const void* in, DType type, int64_t stride, int64_t n, int64_t d,
          float* out);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_POOL_POOL_H_
