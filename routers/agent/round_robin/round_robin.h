#ifndef SLUICE_ROUTERS_AGENT_ROUND_ROBIN_ROUND_ROBIN_H_
#define SLUICE_ROUTERS_AGENT_ROUND_ROBIN_ROUND_ROBIN_H_
// Open agents in turn, by the id of the decision: over ids every open path has its turn. Its
// propensity is that over ids, 1 / open a stage.
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
    uint64_t turn = q.id;  // the last stage's agents change once all paths before it had a turn
    SLUICE_RETURN_IF_ERROR(Walk(p.layout, 0, q, d, trace, [&](const Stage& s, Weights& w) {
      int open = 0;
      for (int j = 0; j < s.size; ++j) open += s.open[j];
      int64_t left = static_cast<int64_t>(turn % static_cast<uint64_t>(open));
      turn /= static_cast<uint64_t>(open);
      for (int j = 0; j < s.size; ++j) w.p[j] = s.open[j] && left-- == 0;
    }));
    // Whose turn it is does not depend on the query: over ids, the path was one of all open ones.
    d.propensity = 1;
    for (int s = 0; s < p.layout.stages; ++s) {
      const int first = p.layout.first_agent[s];
      const auto may = [&](int a) { return q.blocked.empty() || q.blocked[a] == Block::kNone; };
      int open = 0;
      for (int j = 0; j < p.layout.size[s]; ++j) open += may(first + j);
      d.propensity *= may(d.path[s]) ? 1.0 / open : 0.0;
    }
    return absl::OkStatus();
  }

 private:
  explicit RoundRobin(const Config&) {}
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_ROUND_ROBIN_ROUND_ROBIN_H_
