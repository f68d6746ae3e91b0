#ifndef SLUICE_ROUTERS_AGENT_BEST_SINGLE_BEST_SINGLE_H_
#define SLUICE_ROUTERS_AGENT_BEST_SINGLE_BEST_SINGLE_H_
// The agent of the highest mean utility over all tasks, whatever the query: what routing has to
// beat.
#include "sluice/routers/agent/common/arm_table.h"
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
class BestSingle : public ArmLearner {
 public:
  static constexpr absl::string_view kName = "best_single";
  struct Config {
    UtilityConfig utility;
    template <class V>
    void VisitFields(V&& v) {
      utility.VisitFields(v);
    }
  };
  static absl::StatusOr<BestSingle> Create(const Config& c) { return BestSingle(c); }
  absl::Status Run(const Plan& p, absl::Span<const double> state, const AgentRequest& q,
                   AgentDecision& d, AgentTrace* trace) const {
    const ArmTable arms(p.layout);
    return Walk(p.layout, 0, q, d, trace, [&](const Stage& s, Weights& w) {
      std::array<double, kMaxTasks>
          seen;  // a task counts for what was seen of it, by any agent of the stage
      double weight = 0;
      for (int t = 0; t < p.layout.tasks; ++t) {
        seen[t] = utility_.prior;
        for (int k = 0; k < s.size; ++k) {
          seen[t] += state[arms.cell(t, s.first_agent + k, ArmTable::kCount)];
        }
        weight += seen[t];
      }
      TakeBest(s, w, [&](int j) {
        const Agent& agent = p.graph->stages[s.index][j];
        double sum = 0;
        for (int t = 0; t < p.layout.tasks; ++t) {
          sum += seen[t] * arms.Of(utility_, agent, state, t, s.first_agent + j).utility;
        }
        return sum / weight;
      });
    });
  }

 private:
  explicit BestSingle(const Config& c) : ArmLearner(c.utility) {}
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_BEST_SINGLE_BEST_SINGLE_H_
