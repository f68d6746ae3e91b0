#ifndef SLUICE_ROUTERS_ADAPTER_DYNAMIC_ROUTING_FORGETTING_H_
#define SLUICE_ROUTERS_ADAPTER_DYNAMIC_ROUTING_FORGETTING_H_
// What learning one task after the other costs the earlier ones. Changes nothing.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "sluice/api/assignment.h"

SLUICE_BEGIN_NAMESPACE
namespace adapter {
// score[t][j]: how good task j is after task t was learned, j <= t.
class ForgettingMatrix {
 public:
  // Scores of tasks 0 to t, after t.
  void Add(std::vector<double> scores) { score_.push_back(std::move(scores)); }

  // Mean score of all tasks at the end. 0 of none.
  double Average() const {
    if (score_.empty()) return 0;
    double sum = 0;
    for (double s : score_.back()) sum += s;
    return sum / static_cast<double>(score_.back().size());
  }
  // Mean over the tasks but the last of the best score that a task once had less its score at the
  // end: 0 where nothing was lost, below it where later tasks helped. The best is taken from its
  // own turn up to the one before the last. 0 of fewer than two tasks.
  double Forgetting() const {
    const size_t n = score_.size();
    if (n < 2) return 0;
    double sum = 0;
    for (size_t j = 0; j + 1 < n; ++j) {
      double best = score_[j][j];
      for (size_t t = j; t + 1 < n; ++t) best = std::max(best, score_[t][j]);
      sum += best - score_[n - 1][j];
    }
    return sum / static_cast<double>(n - 1);
  }

 private:
  std::vector<std::vector<double>> score_;
};

// The unit of the greatest weight of every item; -1 of items that have none. Ties to the lowest.
inline std::vector<int32_t> FirstChoices(const Assignment& a) {
  std::vector<int32_t> first(static_cast<size_t>(a.items), -1);
  for (int64_t i = 0; i < a.items; ++i) {
    int64_t best = -1;
    for (int64_t e = a.row_ptr[i]; e < a.row_ptr[i + 1]; ++e) {
      if (best < 0 || a.weight[e] > a.weight[best]) best = e;
    }
    if (best >= 0) first[i] = a.unit[best];
  }
  return first;
}
// Share of the items whose units are not the same before and after: what a new adapter took from
// the others. The assignments must be of the same items.
inline double Drift(const Assignment& before, const Assignment& after) {
  int64_t other = 0;
  for (int64_t i = 0; i < before.items; ++i) {
    const auto from = before.unit.begin() + before.row_ptr[i];
    const auto to = before.unit.begin() + before.row_ptr[i + 1];
    const auto now = after.unit.begin() + after.row_ptr[i];
    other += !std::equal(from, to, now, after.unit.begin() + after.row_ptr[i + 1]);
  }
  return before.items > 0 ? static_cast<double>(other) / static_cast<double>(before.items) : 0;
}
}  // namespace adapter
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ADAPTER_DYNAMIC_ROUTING_FORGETTING_H_
