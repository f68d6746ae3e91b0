#ifndef SLUICE_RUNTIME_KERNELS_TOP_K_TOP_K_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_TOP_K_TOP_K_REFERENCE_H_
// The specification: plain loops in double precision.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace sluice::kernels {
inline std::vector<uint32_t> TopKReference(const float* x, int64_t n, int64_t k) {
  std::vector<uint32_t> ids;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] > -INFINITY) ids.push_back(static_cast<uint32_t>(i));
  }
  std::stable_sort(ids.begin(), ids.end(), [&](uint32_t a, uint32_t b) { return x[a] > x[b]; });
  ids.resize(std::min(k, std::ssize(ids)));
  std::sort(ids.begin(), ids.end());
  return ids;
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_TOP_K_TOP_K_REFERENCE_H_
