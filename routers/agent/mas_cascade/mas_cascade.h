#ifndef SLUICE_ROUTERS_AGENT_MAS_CASCADE_MAS_CASCADE_H_
#define SLUICE_ROUTERS_AGENT_MAS_CASCADE_MAS_CASCADE_H_
// Cascaded scoring in the style of MasRouter (arXiv 2502.11133): each stage is a softmax over
// agents given the query's tasks and the stage before, trained by REINFORCE on quality -
// cost_weight * USD, without a baseline as published. MasRouter scores embeddings; here a logit
// stands in their place per (task, edge), so the gradient is exact: theta_e += rate / T * (sum of
// e's rewards - p_e * sum of the row's rewards), an epoch at a time.
#include <cmath>

#include "sluice/routers/agent/common/arm_table.h"
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
class MasCascade {
 public:
  static constexpr absl::string_view kName = "mas_cascade";
  struct Config {
    double rate = 0.05, temperature = 1, ability_logit = 2;
    bool baseline = false;
    int64_t seed = 1;
    UtilityConfig utility;
    template <class V>
    void VisitFields(V&& v) {
      v("rate", rate, Range<double>{0, 100}, "step of the policy gradient");
      v("temperature", temperature, Range<double>{1e-3, 1000}, "of the softmax");
      v("ability_logit", ability_logit, Range<double>{0, 100},
        "logits start at this times the configured ability");
      v("baseline", baseline, Range<bool>{false, true},
        "subtract the row's mean reward; published: not");
      v("seed", seed, Range<int64_t>{0, int64_t{1} << 62}, "of the draws");
      utility.VisitFields(v);
    }
  };
  using Plan = WalkPlan;
  static absl::StatusOr<MasCascade> Create(const Config& c) { return MasCascade(c); }
  absl::StatusOr<Plan> MakePlan(std::shared_ptr<const AgentGraph> g) const {
    Plan p = Plan::Of(std::move(g));
    p.state = p.layout.tasks * p.layout.edges;
    p.sums = 2 * p.state;  // weight, weighted reward
    return p;
  }
  void InitialState(const Plan& p, absl::Span<double> state) const {
    const Layout& l = p.layout;
    for (int t = 0; t < l.tasks; ++t) {
      for (int s = 0; s < l.stages; ++s) {
        for (int e = 0; e < (s == 0 ? 1 : l.size[s - 1]) * l.size[s]; ++e) {
          const Agent& agent = p.graph->stages[s][e % l.size[s]];
          const double ability = agent.ability.empty() ? 0.5 : agent.ability[t];
          state[t * l.edges + l.first_edge[s] + e] = config_.ability_logit * ability;
        }
      }
    }
  }
  absl::Status Run(const Plan& p, absl::Span<const double> state, const AgentRequest& q,
                   AgentDecision& d, AgentTrace* trace) const {
    const Layout& l = p.layout;
    return Walk(l, static_cast<uint64_t>(config_.seed), q, d, trace,
                [&](const Stage& s, Weights& w) {
                  for (int t = 0; t < l.tasks; ++t) {
                    if (q.intent[t] <= 0) continue;
                    for (int j = 0; j < s.size; ++j) {
                      w.tau[j] += q.intent[t] * state[t * l.edges + s.first_edge + j];
                    }
                  }
                  Softmax(w.tau.data(), s.size, w.p.data());
                });
  }
  void Observe(const Plan& p, const AgentOutcome& o, std::vector<SumDelta>& out) const {
    const Layout& l = p.layout;
    const double reward = o.quality - config_.utility.cost_weight * o.cost_usd -
                          config_.utility.latency_weight * o.latency_s;
    for (int t = 0; t < l.tasks; ++t) {
      if (o.intent[t] <= 0) continue;
      for (int s = 0; s < l.stages; ++s) {
        const int64_t edge = l.edge(s, o.path);
        if (edge < 0) continue;
        const auto cell = static_cast<uint32_t>(2 * (t * l.edges + edge));
        out.push_back({cell, ToSum(o.intent[t])});
        out.push_back({cell + 1, ToSum(o.intent[t] * reward)});
      }
    }
  }
  void Fold(const Plan& p, absl::Span<const int64_t> sums, absl::Span<double> state) const {
    const Layout& l = p.layout;
    for (int t = 0; t < l.tasks; ++t) {
      for (int s = 0; s < l.stages; ++s) {
        for (int r = 0; r < (s == 0 ? 1 : l.size[s - 1]); ++r) {
          const int n = l.size[s];
          const int64_t first = t * l.edges + l.first_edge[s] + int64_t{r} * n;
          double count = 0, total = 0;
          for (int j = 0; j < n; ++j) {
            count += FromSum(sums[2 * (first + j)]);
            total += FromSum(sums[2 * (first + j) + 1]);
          }
          if (count == 0) continue;
          const double mean = config_.baseline ? total / count : 0;
          std::array<double, kMaxStageAgents> p_row;
          Softmax(&state[first], n, p_row.data());
          for (int j = 0; j < n; ++j) {
            const double own =
                FromSum(sums[2 * (first + j) + 1]) - mean * FromSum(sums[2 * (first + j)]);
            state[first + j] +=
                config_.rate / config_.temperature * (own - p_row[j] * (total - mean * count));
          }
        }
      }
    }
  }

 private:
  explicit MasCascade(const Config& c) : config_(c) {}
  void Softmax(const double* logits, int n, double* p) const {
    double top = -INFINITY, sum = 0;
    for (int j = 0; j < n; ++j) top = std::max(top, logits[j]);
    for (int j = 0; j < n; ++j) sum += p[j] = std::exp((logits[j] - top) / config_.temperature);
    for (int j = 0; j < n; ++j) p[j] /= sum;
  }
  Config config_;
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_MAS_CASCADE_MAS_CASCADE_H_
