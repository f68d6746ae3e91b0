#ifndef SLUICE_ROUTERS_AGENT_EPSILON_GREEDY_EPSILON_GREEDY_H_
#define SLUICE_ROUTERS_AGENT_EPSILON_GREEDY_EPSILON_GREEDY_H_
// The agent of the highest mean utility for the query's tasks; a share epsilon of the decisions is
// drawn uniformly.
#include "sluice/routers/agent/common/arm_table.h"
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
class EpsilonGreedy : public ArmLearner {
 public:
  static constexpr absl::string_view kName = "epsilon_greedy";
  struct Config {
    double epsilon = 0.05;
    int64_t seed = 1;
    UtilityConfig utility;
    template <class V>
    void VisitFields(V&& v) {
      v("epsilon", epsilon, Range<double>{0, 1}, "share of decisions drawn uniformly");
      v("seed", seed, Range<int64_t>{0, int64_t{1} << 62}, "of the draws");
      utility.VisitFields(v);
    }
  };
  static absl::StatusOr<EpsilonGreedy> Create(const Config& c) { return EpsilonGreedy(c); }
  absl::Status Run(const Plan& p, absl::Span<const double> state, const AgentRequest& q,
                   AgentDecision& d, AgentTrace* trace) const {
    return Walk(p.layout, static_cast<uint64_t>(config_.seed), q, d, trace,
                [&](const Stage& s, Weights& w) {
                  TakeBest(s, w, [&](int j) { return Of(p, state, s, q.intent, j).utility; });
                  for (int j = 0; j < s.size; ++j) {
                    if (s.open[j] && w.p[j] > 0) w.greedy = j;
                    w.p[j] = 1;
                  }
                  w.q0 = 1 - config_.epsilon;
                });
  }

 private:
  explicit EpsilonGreedy(const Config& c) : ArmLearner(c.utility), config_(c) {}
  Config config_;
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_EPSILON_GREEDY_EPSILON_GREEDY_H_
