// An agent router as a plug-in: the cheapest agent that is able enough, the ablest where none is.
#include "sluice/api/plugin.h"
#include "sluice/routers/agent/common/stage_walk.h"

namespace {
using namespace sluice;
class Cheapest : public agent::Unlearned {
 public:
  static constexpr absl::string_view kName = "cheapest";
  struct Config {
    double able = 0.7;
    template <class V>
    void VisitFields(V&& v) {
      v("able", able, Range<double>{0, 1},
        "ability for the query's tasks from which an agent is good enough");
    }
  };
  static absl::StatusOr<Cheapest> Create(const Config& c) { return Cheapest(c); }
  absl::Status Run(const Plan& p, absl::Span<const double>, const AgentRequest& q, AgentDecision& d,
                   AgentTrace* trace) const {
    return agent::Walk(p.layout, 0, q, d, trace, [&](const agent::Stage& s, agent::Weights& w) {
      agent::TakeBest(s, w, [&](int j) {
        const Agent& a = p.graph->agent(s.first_agent + j);
        double ability = a.ability.empty() ? 0.5 : 0;
        for (size_t t = 0; t < a.ability.size(); ++t) ability += q.intent[t] * a.ability[t];
        return ability >= config_.able ? 2 / (1 + a.cost_usd) : ability - 2;  // able ones first
      });
    });
  }

 private:
  explicit Cheapest(const Config& c) : config_(c) {}
  Config config_;
};
}  // namespace
SLUICE_PLUGIN("cheapest", "1.0.0", Cheapest)
