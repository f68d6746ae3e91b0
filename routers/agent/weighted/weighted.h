#ifndef SLUICE_ROUTERS_AGENT_WEIGHTED_WEIGHTED_H_
#define SLUICE_ROUTERS_AGENT_WEIGHTED_WEIGHTED_H_
// Agents drawn in proportion to their configured weight.
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
class Weighted : public Unlearned {
 public:
  static constexpr absl::string_view kName = "weighted";
  struct Config {
    int64_t seed = 1;
    template <class V>
    void VisitFields(V&& v) {
      v("seed", seed, Range<int64_t>{0, int64_t{1} << 62}, "of the draws");
    }
  };
  static absl::StatusOr<Weighted> Create(const Config& c) { return Weighted(c); }
  absl::Status Run(const Plan& p, absl::Span<const double>, const AgentRequest& q, AgentDecision& d,
                   AgentTrace* trace) const {
    return Walk(p.layout, static_cast<uint64_t>(config_.seed), q, d, trace,
                [&](const Stage& s, Weights& w) {
                  for (int j = 0; j < s.size; ++j) w.p[j] = p.graph->stages[s.index][j].weight;
                });
  }

 private:
  explicit Weighted(const Config& c) : config_(c) {}
  Config config_;
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_WEIGHTED_WEIGHTED_H_
