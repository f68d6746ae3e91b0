#include "sluice/runtime/kernels/index_score/index_score.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sluice/runtime/kernels/index_score/index_score.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "sluice/runtime/kernels/index_score/index_score-inl.h"

#if HWY_ONCE
namespace sluice_kernels {
HWY_EXPORT(IndexScore);
}  // namespace sluice_kernels
namespace sluice::kernels {
using namespace sluice_kernels;  // the dispatch tables
void IndexScore(const float* q, const float* weight, int64_t heads, int64_t dim, const void* keys,
                DType type, int64_t row_bytes, const uint32_t* ids, int64_t n, float* score,
                float* scratch) {
  HWY_DYNAMIC_DISPATCH(IndexScore)
  (q, weight, heads, dim, keys, type, row_bytes, ids, n, score, scratch);
}
}  // namespace sluice::kernels
#endif
