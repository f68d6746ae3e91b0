#ifndef SLUICE_RUNTIME_ATTEND_METRICS_H_
#define SLUICE_RUNTIME_ATTEND_METRICS_H_
// How good a plan is, against dense attention in double precision. Expensive: O(sampled rows * keys
// * width).
#include <cstdint>
#include <vector>

#include "sluice/api/attention_plan.h"

SLUICE_BEGIN_NAMESPACE
// A sample of one quantity; mean, fifth percentile and minimum over (query, head) rows. NaN when
// nothing was added.
class RowStat {
 public:
  void Add(double x) { x_.push_back(x); }
  void Add(const RowStat& o) { x_.insert(x_.end(), o.x_.begin(), o.x_.end()); }
  int64_t count() const { return static_cast<int64_t>(x_.size()); }
  double mean() const;
  double quantile(double q) const;
  double min() const { return quantile(0); }
  double max() const { return quantile(1); }

 private:
  std::vector<double> x_;
};

struct PlanQuality {
  RowStat density;      // exact pairs / causal pairs of the row
  RowStat mass_recall;  // dense probability that the selected keys carry
  RowStat rel_error;    // |o - o_dense| / |o_dense|
  RowStat bound_slack;  // |o - o_dense| / ((1 - mass) * 2 max|v|): above 1 + rounding is an
                        // executor bug
  RowStat
      regret;  // best mass of as many keys taken as whole blocks (last one in part) - achieved mass
  RowStat block_recall;  // share of the oracle's blocks (most mass, as many as were touched) that
                         // were touched
  void Add(const PlanQuality& o);
};
struct QualityOptions {
  int64_t query_stride = 1;  // measure every how many queries
  int64_t block = 64;        // for regret and block recall
};
// `o` [q_count, heads, dv] is what the executor made of the plan; empty: errors are not measured.
// Plans of one softmax with exact entries only.
PlanQuality MeasurePlan(const AttentionPlan& plan, const HeadsView<const float>& q, const KvView& k,
                        const KvView& v, float scale, const HeadsView<const float>& o,
                        const QualityOptions& options = {});

// |A and B| / |A or B| of ascending lists; 1 when both are empty.
double IoU(absl::Span<const uint32_t> a, absl::Span<const uint32_t> b);
// Keys of the union of list rows [first, last) divided by the sum of their own lengths times their
// number: 1 when all rows agree, larger when their union grows.
double UnionOverOwn(const AttentionBranch& tokens, int64_t first, int64_t last);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_ATTEND_METRICS_H_
