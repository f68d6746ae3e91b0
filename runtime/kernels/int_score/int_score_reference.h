#ifndef SLUICE_RUNTIME_KERNELS_INT_SCORE_INT_SCORE_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_INT_SCORE_INT_SCORE_REFERENCE_H_
// The specification: plain loops over rows that are not packed.
#include <cmath>
#include <cstdint>
#include <vector>

namespace sluice::kernels {
// Of a scale in single precision, as kept beside the row.
inline std::vector<int64_t> QuantiseIntReference(const std::vector<float>& x, int32_t limit,
                                                 float& scale) {
  double most = 0;
  bool finite = true;
  for (float e : x) {
    finite &= std::isfinite(e);
    most = std::max(most, std::fabs(static_cast<double>(e)));
  }
  scale = finite ? static_cast<float>(most) / static_cast<float>(limit) : NAN;
  std::vector<int64_t> whole(x.size());
  for (size_t i = 0; i < x.size() && scale > 0; ++i)
    whole[i] = static_cast<int64_t>(std::nearbyint(x[i] / scale));
  return whole;
}
inline int64_t IntDotReference(const int8_t* a, const int8_t* b, int64_t dim) {
  int64_t sum = 0;
  for (int64_t i = 0; i < dim; ++i) sum += int64_t{a[i]} * int64_t{b[i]};
  return sum;
}
// q [heads, dim], key [dim].
inline double IntScoreReference(const int8_t* q, const float* weight, int64_t heads, int64_t dim,
                                const int8_t* key, float key_scale) {
  double sum = 0;
  for (int64_t j = 0; j < heads; ++j) {
    const int64_t dot = IntDotReference(q + j * dim, key, dim);
    sum += static_cast<double>(weight[j]) * static_cast<double>(dot < 0 ? 0 : dot);
  }
  return sum * key_scale;
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_INT_SCORE_INT_SCORE_REFERENCE_H_
