#ifndef SLUICE_RUNTIME_KERNELS_INDEX_SCORE_INDEX_SCORE_H_
#define SLUICE_RUNTIME_KERNELS_INDEX_SCORE_INDEX_SCORE_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
// Token indexer scores of DSA (arXiv 2512.02556): score[s] = sum_j weight[j] * max(0, q[j] . k[s])
// for one query, q [heads, dim], n keys with row stride in bytes, optional ids (then k row s is
// keys[ids[s]]). Weights may be negative. NaN in a product makes the score NaN. scratch:
// IndexScratchFloats(heads, dim). O(n heads dim).
inline constexpr int64_t IndexScratchFloats(int64_t heads, int64_t dim) {
  return 64 * dim + 64 * heads;
}
void IndexScore(const float* q, const float* weight, int64_t heads, int64_t dim, const void* keys,
                DType type, int64_t row_bytes, const uint32_t* ids, int64_t n, float* score,
                float* scratch);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_INDEX_SCORE_INDEX_SCORE_H_
