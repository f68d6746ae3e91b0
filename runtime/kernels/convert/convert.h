#ifndef SLUICE_RUNTIME_KERNELS_CONVERT_CONVERT_H_
#define SLUICE_RUNTIME_KERNELS_CONVERT_CONVERT_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
// n elements to float, and from float (nearest even; NaN stays NaN; overflow to f16 is infinite).
// kI8 is read as a plain integer; it and types in blocks are no targets.
void ConvertToF32(const void* in, DType type, int64_t n, float* out);
void ConvertFromF32(const float* in, int64_t n, DType type, void* out);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_CONVERT_CONVERT_H_
