#ifndef SLUICE_ROUTERS_AGENT_COMMON_ARM_TABLE_H_
#define SLUICE_ROUTERS_AGENT_COMMON_ARM_TABLE_H_
// What was seen of every agent, per task: evidence, quality, cost and latency, weighted by intent.
// The learned part of the bandits, and AMRO-S's measured ability.
#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
// Utility of an answer: quality - cost_weight * USD - latency_weight * seconds.
struct UtilityConfig {
  double cost_weight = 0, latency_weight = 0;
  double prior = 4;     // answers that the prior ability is worth
  double memory = 1e9;  // outcomes of a task after which evidence counts for 1/e
  template <class V>
  void VisitFields(V&& v) {
    v("cost_weight", cost_weight, Range<double>{0, 1e9}, "utility lost per USD");
    v("latency_weight", latency_weight, Range<double>{0, 1e9}, "utility lost per second");
    v("prior", prior, Range<double>{1e-6, 1e9}, "answers that the configured ability counts for");
    v("memory", memory, Range<double>{1, 1e12},
      "outcomes of a task after which old evidence weighs 1/e");
  }
};

class ArmTable {
 public:
  enum Column { kCount, kQuality, kCost, kLatency, kColumns };
  explicit ArmTable(const Layout& l) : tasks_(l.tasks), agents_(l.agents) {}
  int64_t cells() const { return kColumns * tasks_ * agents_; }
  int64_t cell(int64_t t, int64_t a, Column c) const { return (t * agents_ + a) * kColumns + c; }

  void Initial(absl::Span<double> state) const { std::fill(state.begin(), state.end(), 0.0); }
  // Every agent of the path is credited with the whole outcome's quality and its own cost and
  // latency, or an equal share of them where nobody told.
  void Observe(int64_t base, const AgentOutcome& o, std::vector<SumDelta>& out) const {
    const double share = 1.0 / static_cast<double>(o.path.size());
    for (int64_t t = 0; t < tasks_; ++t) {
      const double w = o.intent[t];
      if (w <= 0) continue;
      for (size_t s = 0; s < o.path.size(); ++s) {
        const int32_t a = o.path[s];
        if (a < 0) continue;
        const double cost = o.stage_cost_usd.empty() ? o.cost_usd * share : o.stage_cost_usd[s];
        const double latency =
            o.stage_latency_s.empty() ? o.latency_s * share : o.stage_latency_s[s];
        const double column[kColumns] = {1, o.quality, cost, latency};
        for (int c = 0; c < kColumns; ++c) {
          out.push_back({static_cast<uint32_t>(base + cell(t, a, static_cast<Column>(c))),
                         ToSum(w * column[c])});
        }
      }
    }
  }
  void Fold(const UtilityConfig& u, absl::Span<const int64_t> sums,
            absl::Span<double> state) const {
    for (int64_t t = 0; t < tasks_; ++t) {
      const size_t begin = static_cast<size_t>(cell(t, 0, kCount)),
                   n = static_cast<size_t>(agents_ * kColumns);
      int64_t seen = 0;
      for (size_t i = 0; i < n; i += kColumns) seen += sums[begin + i];
      if (seen == 0) continue;
      const double keep = std::exp(-FromSum(seen) / u.memory);
      for (size_t i = 0; i < n; ++i)
        state[begin + i] = state[begin + i] * keep + FromSum(sums[begin + i]);
    }
  }

  struct Estimate {
    double count, quality, utility;
  };
  // Posterior mean over the configured ability, cost and latency.
  Estimate Of(const UtilityConfig& u, const Agent& agent, absl::Span<const double> state, int64_t t,
              int64_t a) const {
    const double* s = &state[cell(t, a, kCount)];
    const double ability = agent.ability.empty() ? 0.5 : agent.ability[t];
    const double n = u.prior + s[kCount];
    const double quality = (u.prior * ability + s[kQuality]) / n;
    const double cost = (u.prior * agent.cost_usd + s[kCost]) / n,
                 latency = (u.prior * agent.latency_s + s[kLatency]) / n;
    return {s[kCount], quality, quality - u.cost_weight * cost - u.latency_weight * latency};
  }
  // Mixed over an intent.
  Estimate Of(const UtilityConfig& u, const Agent& agent, absl::Span<const double> state,
              absl::Span<const double> intent, int64_t a) const {
    Estimate mean{0, 0, 0};
    for (int64_t t = 0; t < tasks_; ++t) {
      if (intent[t] <= 0) continue;
      const Estimate e = Of(u, agent, state, t, a);
      mean.count += intent[t] * e.count;
      mean.quality += intent[t] * e.quality;
      mean.utility += intent[t] * e.utility;
    }
    return mean;
  }

 private:
  int64_t tasks_, agents_;
};

// Routers whose whole state is an ArmTable.
class ArmLearner {
 public:
  using Plan = WalkPlan;
  absl::StatusOr<Plan> MakePlan(std::shared_ptr<const AgentGraph> g) const {
    Plan p = Plan::Of(std::move(g));
    p.sums = p.state = ArmTable(p.layout).cells();
    return p;
  }
  void InitialState(const Plan& p, absl::Span<double> state) const {
    ArmTable(p.layout).Initial(state);
  }
  void Observe(const Plan& p, const AgentOutcome& o, std::vector<SumDelta>& out) const {
    ArmTable(p.layout).Observe(0, o, out);
  }
  void Fold(const Plan& p, absl::Span<const int64_t> sums, absl::Span<double> state) const {
    ArmTable(p.layout).Fold(utility_, sums, state);
  }

 protected:
  explicit ArmLearner(const UtilityConfig& u) : utility_(u) {}
  ArmTable::Estimate Of(const Plan& p, absl::Span<const double> state, const Stage& s,
                        absl::Span<const double> intent, int j) const {
    return ArmTable(p.layout).Of(utility_, p.graph->stages[s.index][j], state, intent,
                                 s.first_agent + j);
  }
  UtilityConfig utility_;
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_COMMON_ARM_TABLE_H_
