#ifndef SLUICE_RUNTIME_LAB_COMPARE_LISTED_H_
#define SLUICE_RUNTIME_LAB_COMPARE_LISTED_H_
// Which pairs a plan lists, by KV head and on a coarse map of queries by keys.
#include <cstdint>
#include <vector>

#include "sluice/api/attention_plan.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
inline constexpr int kMapBins = 24;

class ListedPairs {
 public:
  ListedPairs(int64_t kv_heads, int64_t context);
  void Add(const AttentionPlan& plan);
  // Listed pairs of a KV head, share of all that are causal.
  std::vector<double> HeadDensity() const;
  // [kMapBins, kMapBins], queries by keys: share of the pairs listed, -1 where none is causal.
  std::vector<double> BlockMap() const;

 private:
  size_t BinOf(int64_t position) const;
  // `queries` queries of the map's row `row` see keys [lo, hi): counts and returns the keys.
  double AddKeys(size_t row, double queries, int64_t lo, int64_t hi);
  double AddRow(const AttentionPlan& plan, const AttentionBranch& b, int64_t list, int64_t tile);
  void AddCausal(const AttentionPlan& plan);

  double bin_ = 1;  // positions a bin
  std::vector<double> head_, map_, map_all_;
  double causal_ = 0;
};
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_COMPARE_LISTED_H_
