#ifndef SLUICE_RUNTIME_KERNELS_TOP_P_TOP_P_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_TOP_P_TOP_P_REFERENCE_H_
// The specification: plain loops in double precision.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace sluice::kernels {
inline std::vector<uint32_t> TopPReference(const float* x, int64_t n, double p) {
  std::vector<uint32_t> ids, out;
  double total = 0, sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] >= 0) {
      ids.push_back(static_cast<uint32_t>(i));
      total += x[i];
    }
  }
  if (p <= 0) return {};
  std::stable_sort(ids.begin(), ids.end(), [&](uint32_t a, uint32_t b) { return x[a] > x[b]; });
  for (uint32_t i : ids) {
    if (p < 1 && sum >= p * total) break;
    sum += x[i];
    out.push_back(i);
  }
  std::sort(out.begin(), out.end());
  return out;
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_TOP_P_TOP_P_REFERENCE_H_
