#ifndef SLUICE_API_ONE_UNIT_H_
#define SLUICE_API_ONE_UNIT_H_
// What routers share that give every item exactly one unit.
#include <cmath>
#include <limits>

#include "sluice/api/router.h"

SLUICE_BEGIN_NAMESPACE
namespace one_unit {
// The plan's shape with the units filled in; an error where the caller asked for another number of
// units, or where `what` has another width than the router was made for.
inline absl::StatusOr<RouteShape> Shape(RouteShape s, int64_t units, absl::string_view what,
                                        int64_t given, int64_t width) {
  if ((s.units != 0 && s.units != units) || given != width)
    return absl::InvalidArgumentError(absl::StrCat("shape: ", s.units, " units, ", what, " ", given,
                                                   "; wanted ", units, " units (or 0) and ", what,
                                                   " ", width));
  s.units = units;
  return s;
}

// The unit of an item and the score it won by; a score that is no number is counted and written
// as -inf.
struct Choice {
  int32_t unit = 0;
  float score = 0;
};
// Item i goes to choose(i), with weight 1. O(items).
template <class Choose>
void Assign(int64_t items, int64_t units, Assignment& out, const Choose& choose) {
  out.items = items;
  out.units = units;
  out.num_dropped = 0;
  out.nan_scores = 0;
  out.row_ptr[0] = 0;
  for (int64_t i = 0; i < items; ++i) {
    const size_t at = static_cast<size_t>(i);
    const Choice c = choose(i);
    const bool odd = std::isnan(c.score);
    out.unit[at] = c.unit;
    out.weight[at] = 1;
    if (!out.score.empty()) out.score[at] = odd ? -std::numeric_limits<float>::infinity() : c.score;
    out.nan_scores += odd;
    out.row_ptr[at + 1] = i + 1;
  }
}
}  // namespace one_unit
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_ONE_UNIT_H_
