#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_PERM_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_PERM_H_
// PERM: logical orders of keys and queries.
#include <algorithm>
#include <cmath>

#include "sluice/routers/attention/common/plan.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
// order [n] = 0..n by falling score; ties go to the lower index, NaN stands last, after -infinity.
// O(n log n).
inline void OrderByScore(const float* score, int64_t n, uint32_t* order) {
  for (int64_t i = 0; i < n; ++i) order[i] = static_cast<uint32_t>(i);
  std::sort(order, order + n, [score](uint32_t a, uint32_t b) {
    const bool a_last = std::isnan(score[a]);
    const bool b_last = std::isnan(score[b]);
    if (a_last != b_last) return b_last;
    return !a_last && score[a] != score[b] ? score[a] > score[b] : a < b;
  });
}
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_PERM_H_
