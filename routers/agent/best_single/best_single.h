#ifndef SLUICE_ROUTERS_AGENT_BEST_SINGLE_BEST_SINGLE_H_
#define SLUICE_ROUTERS_AGENT_BEST_SINGLE_BEST_SINGLE_H_
// The agent of the highest mean utility over all tasks, whatever the query: what routing has to beat.
#include "sluice/routers/agent/common/arm_table.h"
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
class BestSingle : public agent_common::ArmLearner {
 public:
  static constexpr absl::string_view kName = "best_single";
  struct Config {
    agent_common::UtilityConfig utility;
    template <class V>
    void VisitFields(V&& v) {
      utility.VisitFields(v);
    }
  };
  static absl::StatusOr<BestSingle> Create(const Config& c) { return BestSingle(c); }
  absl::Status Run(const Plan& p, absl::Span<const double> state, const AgentRequest& q, AgentDecision& d,
                   AgentTrace* trace) const {
    const agent_common::ArmTable arms(p.layout);
    return agent_common::Walk(p.layout, 0, q, d, trace, [&](const agent_common::Stage& s, agent_common::Weights& w) {
      agent_common::TakeBest(s, w, [&](int j) {
        double sum = 0, weight = 0;  // a task counts for what was seen of it, by any agent of the stage
        for (int t = 0; t < p.layout.tasks; ++t) {
          double seen = config_.utility.prior;
          for (int k = 0; k < s.size; ++k) {
            seen += state[static_cast<size_t>(arms.cell(t, s.first_agent + k, agent_common::ArmTable::kCount))];
          }
          const Agent& agent = p.graph->stages[s.index][j];
          sum += seen * arms.Of(config_.utility, agent, state, t, s.first_agent + j).utility;
          weight += seen;
        }
        return sum / weight;
      });
    });
  }

 private:
  explicit BestSingle(const Config& c) : ArmLearner(c.utility), config_(c) {}
  Config config_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_BEST_SINGLE_BEST_SINGLE_H_
