#ifndef SLUICE_PRUNERS_COMMON_FREEZE_H_
#define SLUICE_PRUNERS_COMMON_FREEZE_H_
// Freeze: pruning is routing with a constant gate. Where a router's decisions hardly depend on the
// item, its use of the units over data becomes a mask over units, and what is not kept can go.
#include <cmath>
#include <vector>

#include "sluice/api/router.h"
#include "sluice/api/weight_pruner.h"
#include "sluice/pruners/common/select.h"

SLUICE_BEGIN_NAMESPACE
namespace pruning {
// The unit that stays where only one may: the most used, by counts, shares or scores. Ties go to
// the lowest index, NaN never wins; -1 where there is no number. O(units).
template <class T>
int64_t MostUsed(absl::Span<const T> usage) {
  int64_t best = -1;
  for (size_t u = 0; u < usage.size(); ++u) {
    if (std::isnan(static_cast<double>(usage[u]))) continue;
    if (best < 0 || usage[u] > usage[static_cast<size_t>(best)]) best = static_cast<int64_t>(u);
  }
  return best;
}

// Runs `router` over every batch of `data` and keeps the units that its items used most, by the sum
// of their mixing weights: mask [1, units]. `target`: kRatio, kCount or kCost over the units
// (column_cost: of a unit). Ties keep the lowest unit. O(the router's Runs + units log units).
inline absl::StatusOr<Mask> Freeze(const Router& router, const Router::Plan& plan,
                                   absl::Span<const RouteInputs> data, PruneTarget target,
                                   const RunContext& ctx) {
  const RoutePlanInfo& info = plan.info();
  static constexpr PrunerTraits kTraits = {
      .name = "freeze",
      .kinds = 0xD,  // all but N:M
      .scopes = 0x1,
  };
  SLUICE_RETURN_IF_ERROR(pruner_internal::CheckTarget(kTraits, target, 1, info.shape.units));

  std::vector<double> used(static_cast<size_t>(info.shape.units));
  AssignmentBuffer buffer;
  buffer.Reserve(info.shape.items, info.max_entries, info.max_dropped);
  for (const RouteInputs& in : data) {
    SLUICE_RETURN_IF_ERROR(router.Run(plan, in, ctx, buffer.view()));
    const Assignment& a = buffer.view();
    for (int64_t e = 0; e < a.entries(); ++e)
      used[static_cast<size_t>(a.unit[e])] += static_cast<double>(a.weight[e]);
  }

  std::vector<double> cost;
  for (int64_t u = 0; u < info.shape.units; ++u) cost.push_back(select_internal::CostOf(target, u));
  std::vector<int64_t> order;
  std::vector<uint8_t> kept;
  Keep(used, target, cost, order, kept);
  Mask mask(1, info.shape.units, false);
  for (int64_t u = 0; u < info.shape.units; ++u) mask.Set(0, u, kept[static_cast<size_t>(u)] != 0);
  return mask;
}
}  // namespace pruning
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_COMMON_FREEZE_H_
