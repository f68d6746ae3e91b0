#ifndef SLUICE_ROUTERS_AGENT_COST_THRESHOLD_COST_THRESHOLD_H_
#define SLUICE_ROUTERS_AGENT_COST_THRESHOLD_COST_THRESHOLD_H_
// Two agents a stage, in the style of RouteLLM (arXiv 2406.18665): the strong one, of the highest
// quality for the query's tasks, where its win rate over the cheapest one reaches a threshold; the
// cheapest one otherwise.
#include "sluice/routers/agent/common/arm_table.h"
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
class CostThreshold : public ArmLearner {
 public:
  static constexpr absl::string_view kName = "cost_threshold";
  struct Config {
    double threshold = 0.1;
    UtilityConfig utility;
    template <class V>
    void VisitFields(V&& v) {
      v("threshold", threshold, Range<double>{0, 1},
        "win rate of the strong agent from which it is asked");
      utility.VisitFields(v);
    }
  };
  static absl::StatusOr<CostThreshold> Create(const Config& c) { return CostThreshold(c); }
  absl::Status Run(const Plan& p, absl::Span<const double> state, const AgentRequest& q,
                   AgentDecision& d, AgentTrace* trace) const {
    return Walk(p.layout, 0, q, d, trace, [&](const Stage& s, Weights& w) {
      auto quality = [&](int j) { return Of(p, state, s, q.intent, j).quality; };
      int strong = -1, weak = -1;
      for (int j = 0; j < s.size; ++j) {
        if (!s.open[j]) continue;
        const auto& stage = p.graph->stages[s.index];
        if (strong < 0 || quality(j) > quality(strong)) strong = j;
        if (weak < 0 || stage[j].cost_usd < stage[weak].cost_usd) weak = j;
      }
      const double win = quality(strong) *
                         (1 - quality(weak));  // the strong one is right where the weak one is not
      TakeBest(s, w,
               [&](int j) { return j == (win >= config_.threshold ? strong : weak) ? win : -1; });
    });
  }

 private:
  explicit CostThreshold(const Config& c) : ArmLearner(c.utility), config_(c) {}
  Config config_;
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_COST_THRESHOLD_COST_THRESHOLD_H_
