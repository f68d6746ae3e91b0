#ifndef SLUICE_ROUTERS_AGENT_ROUND_ROBIN_ROUND_ROBIN_H_
#define SLUICE_ROUTERS_AGENT_ROUND_ROBIN_ROUND_ROBIN_H_
// Open agents in turn, by the id of the decision. Its propensity is that over ids, 1 / open a
// stage.
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
class RoundRobin : public Unlearned {
 public:
  static constexpr absl::string_view kName = "round_robin";
  struct Config {
    template <class V>
    void VisitFields(V&&) {}
  };
  static absl::StatusOr<RoundRobin> Create(const Config& c) { return RoundRobin(c); }
  absl::Status Run(const Plan& p, absl::Span<const double>, const AgentRequest& q, AgentDecision& d,
                   AgentTrace* trace) const {
    SLUICE_RETURN_IF_ERROR(Walk(p.layout, 0, q, d, trace, [&](const Stage& s, Weights& w) {
      int open = 0;
      for (int j = 0; j < s.size; ++j) open += s.open[j];
      int64_t turn = static_cast<int64_t>(q.id % static_cast<uint64_t>(open));
      for (int j = 0; j < s.size; ++j) w.p[j] = s.open[j] && turn-- == 0;
    }));
    // Whose turn it is does not depend on the query: over ids, the path was one of all open ones.
    d.propensity = 1;
    for (int s = 0; s < p.layout.stages; ++s) {
      int open = 0;
      for (int j = 0; j < p.layout.size[s]; ++j) {
        open += q.blocked.empty() || q.blocked[p.layout.first_agent[s] + j] == Block::kNone;
      }
      d.propensity /= open;
    }
    return absl::OkStatus();
  }

 private:
  explicit RoundRobin(const Config&) {}
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_ROUND_ROBIN_ROUND_ROBIN_H_
