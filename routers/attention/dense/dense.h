#ifndef SLUICE_ROUTERS_ATTENTION_DENSE_DENSE_H_
#define SLUICE_ROUTERS_ATTENTION_DENSE_DENSE_H_
// Every causal key: the baseline, and what every full budget must equal.
#include "sluice/routers/attention/common/plan.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Dense {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "dense", .token_causal = true, .scattered_queries = true};

  struct Config {
    int64_t tile = kTile;
    template <class V>
    void VisitFields(V&& v) {
      v("tile", tile, Range<int64_t>{1, 64}, "queries that share a pass over the keys");
    }
  };
  using Plan = RouterPlan;

  static absl::StatusOr<Dense> Create(const Config& c) { return Dense(c); }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    plan.layout.max_tile = config_.tile;
    plan.layout.AddBranch({.rows = s.kv_heads * MaxTiles(s, config_.tile), .entry_slots = 1});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext&,
                   PlanBuilder& out) const {
    return WriteDense(plan.shape, in, config_.tile, out);
  }

 private:
  explicit Dense(const Config& c) : config_(c) {}
  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_DENSE_DENSE_H_
