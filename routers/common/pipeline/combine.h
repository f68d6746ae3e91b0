#ifndef SLUICE_ROUTERS_COMMON_PIPELINE_COMBINE_H_
#define SLUICE_ROUTERS_COMMON_PIPELINE_COMBINE_H_
// Combine: the results of one item's units become one row. Contributions are added in the order
// given; give units in rising order and the bits do not depend on who computed them.
#include <algorithm>
#include <cstring>

#include "sluice/api/assignment.h"
#include "sluice/runtime/kernels/gather/gather.h"

SLUICE_BEGIN_NAMESPACE
namespace pipeline {
// Which combinations start from the item's own row: they need equal widths.
inline bool ReadsItem(Combine c) { return c != Combine::kWeightedSum; }

// out [width] before any unit's result is added. x: the item's row, read where ReadsItem.
// `weight_sum`: of the units that will be added, for kBlend.
inline void CombineBegin(Combine c, const float* x, float weight_sum, int64_t width, float* out) {
  if (c == Combine::kWeightedSum) {
    std::fill_n(out, width, 0.0f);
  } else if (c == Combine::kBlend && weight_sum != 0) {
    const float keep = 1.0f - weight_sum;
    for (int64_t i = 0; i < width; ++i) out[i] = keep * x[i];
  } else {
    std::copy_n(x, width, out);
  }
}

// Adds one unit's result y [width]. O(width).
inline void CombineAdd(Combine c, const float* y, float weight, int64_t width, float* out) {
  if (c == Combine::kReplace) {
    std::copy_n(y, width, out);
    return;
  }
  constexpr int32_t kRow = 0;
  kernels::ScatterAddRows(y, &kRow, &weight, 1, width, out, width);
}
}  // namespace pipeline
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_COMMON_PIPELINE_COMBINE_H_
