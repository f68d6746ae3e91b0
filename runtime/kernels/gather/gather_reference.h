#ifndef SLUICE_RUNTIME_KERNELS_GATHER_GATHER_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_GATHER_GATHER_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cstddef>
#include <cstdint>

namespace sluice::kernels {
inline void ScatterAddReference(const float* in, const int32_t* ids, const float* weight, size_t n, size_t width,
                                double* out, size_t stride) {
  for (size_t j = 0; j < n; ++j) {
    for (size_t i = 0; i < width; ++i) {
      out[static_cast<size_t>(ids[j]) * stride + i] += static_cast<double>(weight[j]) * in[j * width + i];
    }
  }
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_GATHER_GATHER_REFERENCE_H_
