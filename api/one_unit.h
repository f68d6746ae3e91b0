#ifndef SLUICE_API_ONE_UNIT_H_
#define SLUICE_API_ONE_UNIT_H_
// What routers share that give every item exactly one unit, from features of a fixed width.
#include "sluice/api/router.h"

SLUICE_BEGIN_NAMESPACE
namespace one_unit {
inline absl::Status CheckShape(const RouteShape& s, int64_t width, int64_t units = 2) {
  if (s.items < 0 || s.units != units || s.width != width)
    return absl::InvalidArgumentError(absl::StrCat("shape: ", s.items, " items, ", s.units,
                                                   " units, width ", s.width, "; wanted ", units,
                                                   " units and width ", width));
  return absl::OkStatus();
}
inline absl::Status CheckRun(const RoutePlanInfo& p, const RouteInputs& in, const RunContext& ctx,
                             const Assignment& out) {
  const int64_t items = in.features.rows;
  if (items > p.shape.items || in.features.cols != p.shape.width)
    return absl::InvalidArgumentError(absl::StrCat("features [", items, ", ", in.features.cols,
                                                   "], planned for at most [", p.shape.items, ", ",
                                                   p.shape.width, "]"));
  if (ctx.workspace.bytes < p.workspace_bytes)
    return absl::InvalidArgumentError(
        absl::StrCat("workspace of ", ctx.workspace.bytes, " bytes, planned ", p.workspace_bytes));
  const size_t n = static_cast<size_t>(items);
  if (out.row_ptr.size() < n + 1 || out.unit.size() < n || out.weight.size() < n)
    return absl::InvalidArgumentError(
        absl::StrCat("the assignment has no room for ", items, " items"));
  return absl::OkStatus();
}
// Item i goes to unit_of(i), weight 1.
template <class UnitOf>
void Assign(int64_t items, Assignment& out, const UnitOf& unit_of) {
  out.items = items;
  out.units = 2;
  out.num_dropped = 0;
  out.row_ptr[0] = 0;
  for (int64_t i = 0; i < items; ++i) {
    const size_t at = static_cast<size_t>(i);
    out.unit[at] = unit_of(i);
    out.weight[at] = 1;
    out.row_ptr[at + 1] = static_cast<int32_t>(i) + 1;
  }
}
}  // namespace one_unit
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_ONE_UNIT_H_
