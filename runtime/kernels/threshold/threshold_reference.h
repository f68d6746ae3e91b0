#ifndef SLUICE_RUNTIME_KERNELS_THRESHOLD_THRESHOLD_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_THRESHOLD_THRESHOLD_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cstddef>
#include <cstdint>
#include <vector>

namespace sluice::kernels {
inline std::vector<uint32_t> ThresholdReference(const float* x, int64_t n, float tau) {
  std::vector<uint32_t> out;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] >= tau) out.push_back(static_cast<uint32_t>(i));
  }
  return out;
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_THRESHOLD_THRESHOLD_REFERENCE_H_
