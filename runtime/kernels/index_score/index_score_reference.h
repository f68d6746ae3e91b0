#ifndef SLUICE_RUNTIME_KERNELS_INDEX_SCORE_INDEX_SCORE_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_INDEX_SCORE_INDEX_SCORE_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cstdint>

namespace sluice::kernels {
// q [heads, dim], key [dim].
inline double IndexScoreReference(const float* q, const float* weight, int64_t heads, int64_t dim,
                                  const float* key) {
  double sum = 0;
  for (int64_t j = 0; j < heads; ++j) {
    double dot = 0;
    for (int64_t i = 0; i < dim; ++i) dot += static_cast<double>(q[j * dim + i]) * key[i];
    sum += weight[j] * (dot < 0 ? 0 : dot);
  }
  return sum;
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_INDEX_SCORE_INDEX_SCORE_REFERENCE_H_
