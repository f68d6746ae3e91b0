#ifndef SLUICE_POLICIES_COMMON_BUDGET_H_
#define SLUICE_POLICIES_COMMON_BUDGET_H_
// How one budget is shared among heads, layers or tokens.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// Shifts all free genes by one amount, clipped to [0, max], so that the mean over all is `mean`.
// `fixed` first genes stay. Precondition: reachable. The mean is within 1e-9. O(n log 1/eps).
inline void WaterFill(std::vector<double>& genes, size_t fixed, double mean, double max) {
  double want = mean * static_cast<double>(genes.size());
  for (size_t i = 0; i < fixed; ++i) want -= genes[i];
  double low = -max - 1, high = max + 1;
  for (size_t i = fixed; i < genes.size(); ++i) {
    high = std::max(high, max - genes[i]);
    low = std::min(low, -genes[i]);
  }
  for (int turn = 0; turn < 100; ++turn) {
    const double shift = (low + high) / 2;
    double sum = 0;
    for (size_t i = fixed; i < genes.size(); ++i) sum += std::clamp(genes[i] + shift, 0.0, max);
    (sum < want ? low : high) = shift;
  }
  for (size_t i = fixed; i < genes.size(); ++i) genes[i] = std::clamp(genes[i] + high, 0.0, max);
}

// One option of an item (a layer's router, a head's k): what it costs and how good it is.
struct BudgetOption {
  double cost = 0, gain = 0;
};
// The option of every item, by falling gain a cost: each item starts at its cheapest option, then
// the upgrade with the best ratio is bought while it fits. Best possible for concave gains up to
// one upgrade. Ties go to the lowest item and option; gains that are not numbers are never bought.
// O((upgrades) * items * options).
inline absl::StatusOr<std::vector<int>> AllocateByGain(
    absl::Span<const std::vector<BudgetOption>> items, double budget) {
  std::vector<int> at(items.size());
  double spent = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].empty())
      return absl::InvalidArgumentError(absl::StrCat("budget: item ", i, " has no options"));
    for (size_t k = 1; k < items[i].size(); ++k) {
      if (items[i][k].cost < items[i][at[i]].cost) at[i] = static_cast<int>(k);
    }
    spent += items[i][at[i]].cost;
  }
  if (!(spent <= budget * (1 + 1e-12)))
    return absl::OutOfRangeError(
        absl::StrCat("budget ", budget, " is below the cheapest plan, ", spent));
  for (;;) {
    size_t item = items.size();
    int option = 0;
    double best = 0;
    for (size_t i = 0; i < items.size(); ++i) {
      const BudgetOption& now = items[i][at[i]];
      for (size_t k = 0; k < items[i].size(); ++k) {
        const double cost = items[i][k].cost - now.cost, gain = items[i][k].gain - now.gain;
        if (!(gain > 0) || !(spent + std::max(0.0, cost) <= budget * (1 + 1e-12))) continue;
        const double ratio = cost > 0 ? gain / cost : INFINITY;
        if (ratio > best) {
          best = ratio;
          item = i;
          option = static_cast<int>(k);
        }
      }
    }
    if (item == items.size()) return at;
    spent += items[item][option].cost - items[item][at[item]].cost;
    at[item] = option;
  }
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_COMMON_BUDGET_H_
