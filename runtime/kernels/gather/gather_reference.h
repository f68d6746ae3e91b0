#ifndef SLUICE_RUNTIME_KERNELS_GATHER_GATHER_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_GATHER_GATHER_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cstddef>
#include <cstdint>

namespace sluice::kernels {
inline void ScatterAddReference(const float* in, const int32_t* ids, const float* weight, int64_t n,
                                int64_t width, double* out, int64_t stride) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < width; ++i) {
      out[static_cast<int64_t>(ids[j]) * stride + i] +=
          static_cast<double>(weight[j]) * in[j * width + i];
    }
  }
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_GATHER_GATHER_REFERENCE_H_
