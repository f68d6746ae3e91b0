#ifndef SLUICE_RUNTIME_KERNELS_DOT_DOT_H_
#define SLUICE_RUNTIME_KERNELS_DOT_DOT_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
// sum_i a[i] * b[i], b of any element type. Empty: 0. O(n).
float Dot(const float* a, const void* b, DType b_type, int64_t n);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_DOT_DOT_H_
