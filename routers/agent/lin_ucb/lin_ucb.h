#ifndef SLUICE_ROUTERS_AGENT_LIN_UCB_LIN_UCB_H_
#define SLUICE_ROUTERS_AGENT_LIN_UCB_LIN_UCB_H_
// LinUCB, disjoint models (A contextual-bandit approach to personalized news article
// recommendation, arXiv 1003.0146): per agent A = ridge I + sum x x', b = sum utility x; score x'
// A^-1 b + explore sqrt(x' A^-1 x), x = intent and features. A decision costs O(agents d^2); Fold
// O(agents d^3) for the agents that were seen.
#include <cmath>
#include <vector>

#include "sluice/routers/agent/common/arm_table.h"
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
class LinUcb {
 public:
  static constexpr absl::string_view kName = "lin_ucb";
  static constexpr int64_t kMaxDim = kMaxTasks + 64;
  struct Config {
    double explore = 0.3, ridge = 1;
    int64_t width = 0;
    UtilityConfig utility;
    template <class V>
    void VisitFields(V&& v) {
      v("explore", explore, Range<double>{0, 1000}, "alpha: deviations added to the mean");
      v("ridge", ridge, Range<double>{1e-6, 1e6}, "of A at the start");
      v("width", width, Range<int64_t>{0, kMaxDim}, "features of a query beside its intent");
      utility.VisitFields(v);
    }
  };
  struct Plan : WalkPlan {
    int64_t dim = 0, triangle = 0, per_arm_sums = 0, per_arm_state = 0;
  };
  static absl::StatusOr<LinUcb> Create(const Config& c) { return LinUcb(c); }
  absl::StatusOr<Plan> MakePlan(std::shared_ptr<const AgentGraph> g) const {
    Plan p{WalkPlan::Of(std::move(g)), 0, 0, 0, 0};
    p.dim = p.layout.tasks + config_.width;
    if (p.dim > kMaxDim) {
      return absl::InvalidArgumentError(
          absl::StrCat("lin_ucb: tasks + width = ", p.dim, ", allowed ", kMaxDim));
    }
    p.triangle = p.dim * (p.dim + 1) / 2;
    p.per_arm_sums = p.triangle + p.dim;
    p.per_arm_state = p.triangle + p.dim + p.dim * p.dim + p.dim;  // A, b | inverse, theta
    p.sums = p.per_arm_sums * p.layout.agents;
    p.state = p.per_arm_state * p.layout.agents;
    return p;
  }
  void InitialState(const Plan& p, absl::Span<double> state) const {
    std::fill(state.begin(), state.end(), 0.0);
    for (int64_t a = 0; a < p.layout.agents; ++a) {
      const Agent& agent = p.graph->agent(a);
      double* s = &state[a * p.per_arm_state];
      for (int64_t i = 0; i < p.dim; ++i) s[i * (i + 1) / 2 + i] = config_.ridge;
      for (int64_t t = 0; t < p.layout.tasks; ++t) {  // theta starts at the configured utility
        const double ability = agent.ability.empty() ? 0.5 : agent.ability[t];
        s[p.triangle + t] =
            config_.ridge * (ability - config_.utility.cost_weight * agent.cost_usd -
                             config_.utility.latency_weight * agent.latency_s);
      }
      Solve(p, s);
    }
  }
  absl::Status Run(const Plan& p, absl::Span<const double> state, const AgentRequest& q,
                   AgentDecision& d, AgentTrace* trace) const {
    if (config_.width > 0 && std::ssize(q.features) != config_.width) {
      return absl::InvalidArgumentError(absl::StrCat("lin_ucb: query has ", q.features.size(),
                                                     " features, wanted ", config_.width));
    }
    return Walk(p.layout, 0, q, d, trace, [&](const Stage& s, Weights& w) {
      std::array<double, kMaxDim> x;
      Context(p, q.intent, q.features, x);
      TakeBest(s, w, [&](int j) {
        const double* arm = &state[(s.first_agent + j) * p.per_arm_state];
        const double* inverse = arm + p.triangle + p.dim;
        const double* theta = inverse + p.dim * p.dim;
        double mean = 0, variance = 0;
        for (int64_t i = 0; i < p.dim; ++i) {
          if (x[i] == 0) continue;
          mean += theta[i] * x[i];
          double row = 0;
          for (int64_t k = 0; k < p.dim; ++k) row += inverse[i * p.dim + k] * x[k];
          variance += x[i] * row;
        }
        return mean + config_.explore * std::sqrt(std::max(variance, 0.0));
      });
    });
  }
  void Observe(const Plan& p, const AgentOutcome& o, std::vector<SumDelta>& out) const {
    if (config_.width > 0 && std::ssize(o.features) != config_.width) return;
    std::array<double, kMaxDim> x;
    Context(p, o.intent, o.features, x);
    const double utility = o.quality - config_.utility.cost_weight * o.cost_usd -
                           config_.utility.latency_weight * o.latency_s;
    for (int32_t a : o.path) {
      if (a < 0) continue;
      const auto base = static_cast<uint32_t>(a * p.per_arm_sums);
      for (int64_t i = 0; i < p.dim; ++i) {
        if (x[i] == 0) continue;
        for (int64_t k = 0; k <= i; ++k) {
          if (x[k] != 0)
            out.push_back({base + static_cast<uint32_t>(i * (i + 1) / 2 + k), ToSum(x[i] * x[k])});
        }
        out.push_back({base + static_cast<uint32_t>(p.triangle + i), ToSum(x[i] * utility)});
      }
    }
  }
  void Fold(const Plan& p, absl::Span<const int64_t> sums, absl::Span<double> state) const {
    for (int64_t a = 0; a < p.layout.agents; ++a) {
      const int64_t* add = &sums[a * p.per_arm_sums];
      double* s = &state[a * p.per_arm_state];
      bool seen = false;
      for (int64_t i = 0; i < p.per_arm_sums; ++i) {
        seen = seen || add[i] != 0;
        s[i] += FromSum(add[i]);
      }
      if (seen) Solve(p, s);
    }
  }

 private:
  explicit LinUcb(const Config& c) : config_(c) {}
  void Context(const Plan& p, absl::Span<const double> intent, absl::Span<const float> features,
               std::array<double, kMaxDim>& x) const {
    for (int64_t i = 0; i < p.layout.tasks; ++i) x[i] = intent[i];
    for (int64_t i = 0; i < config_.width; ++i) x[p.layout.tasks + i] = features[i];
  }
  // Inverse (Gauss-Jordan: A is positive definite, so no pivot is searched) and theta of one arm.
  static void Solve(const Plan& p, double* arm) {
    const int64_t n = p.dim;
    double* inverse = arm + p.triangle + n;
    double* theta = inverse + n * n;
    std::vector<double> a(n * n);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < n; ++k) {
        a[i * n + k] = i >= k ? arm[i * (i + 1) / 2 + k] : arm[k * (k + 1) / 2 + i];
        inverse[i * n + k] = i == k;
      }
    }
    for (int64_t c = 0; c < n; ++c) {
      const double scale = 1 / a[c * n + c];
      for (int64_t k = 0; k < n; ++k) {
        a[c * n + k] *= scale;
        inverse[c * n + k] *= scale;
      }
      for (int64_t i = 0; i < n; ++i) {
        const double f = a[i * n + c];
        if (i == c || f == 0) continue;
        for (int64_t k = 0; k < n; ++k) {
          a[i * n + k] -= f * a[c * n + k];
          inverse[i * n + k] -= f * inverse[c * n + k];
        }
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      theta[i] = 0;
      for (int64_t k = 0; k < n; ++k) theta[i] += inverse[i * n + k] * arm[p.triangle + k];
    }
  }
  Config config_;
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_LIN_UCB_LIN_UCB_H_
