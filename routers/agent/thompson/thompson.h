#ifndef SLUICE_ROUTERS_AGENT_THOMPSON_THOMPSON_H_
#define SLUICE_ROUTERS_AGENT_THOMPSON_THOMPSON_H_
// Thompson sampling: quality of an agent for the query's tasks is Beta, its mean cost and latency
// are taken off.
#include "sluice/routers/agent/common/arm_table.h"
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
class Thompson : public ArmLearner {
 public:
  static constexpr absl::string_view kName = "thompson";
  struct Config {
    int64_t seed = 1;
    UtilityConfig utility;
    template <class V>
    void VisitFields(V&& v) {
      v("seed", seed, Range<int64_t>{0, int64_t{1} << 62}, "of the draws");
      utility.VisitFields(v);
    }
  };
  static absl::StatusOr<Thompson> Create(const Config& c) { return Thompson(c); }
  absl::Status Run(const Plan& p, absl::Span<const double> state, const AgentRequest& q,
                   AgentDecision& d, AgentTrace* trace) const {
    return Walk(p.layout, static_cast<uint64_t>(config_.seed), q, d, trace,
                [&](const Stage& s, Weights& w) {
                  std::array<Arm, kMaxStageAgents> arm;
                  for (int j = 0; j < s.size; ++j) {
                    if (!s.open[j]) continue;
                    const auto e = Of(p, state, s, q.intent, j);
                    const double n = e.count + utility_.prior;
                    arm[j] = {e.quality * n, (1 - e.quality) * n, e.quality - e.utility};
                    w.tau[j] = n;
                    w.eta[j] = e.utility;
                  }
                  Best(s, arm, w.p);
                });
  }

 private:
  explicit Thompson(const Config& c) : ArmLearner(c.utility), config_(c) {}
  static constexpr int kPoints = 96;  // of the quadrature
  struct Arm {
    double a, b, loss;  // Beta(a, b) shifted down by the mean loss of utility
  };
  // p_j = P(arm j has the largest utility), by quadrature of density times the others'
  // distributions. Drawing from p is Thompson sampling, and p is its exact propensity.
  static void Best(const Stage& s, const std::array<Arm, kMaxStageAgents>& arm,
                   std::array<double, kMaxStageAgents>& p) {
    double lo = -INFINITY, hi = -INFINITY;
    for (int j = 0; j < s.size; ++j) {
      if (!s.open[j]) continue;
      const double n = arm[j].a + arm[j].b, mean = arm[j].a / n;
      const double sd = std::sqrt(std::max(mean * (1 - mean), 1e-4) / (n + 1));
      lo = std::max(lo, std::max(mean - 6 * sd, 0.0) - arm[j].loss);
      hi = std::max(hi, std::min(mean + 6 * sd, 1.0) - arm[j].loss);
    }
    hi = std::max(hi, lo + 1e-9);
    // Below lo some arm is certain to be better; what others hold there counts for nothing.
    std::array<double, kPoints> others;
    others.fill(1);
    // Not cleared: rows of open arms are written before they are read, and what a small team does
    // not use of it is never touched.
    std::array<std::array<double, kPoints>, kMaxStageAgents> density;
    const double step = (hi - lo) / kPoints;
    for (int j = 0; j < s.size; ++j) {
      if (!s.open[j]) continue;
      const double a = std::max(arm[j].a, 1e-3), b = std::max(arm[j].b, 1e-3);
      const double norm = std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b);
      for (int i = 0; i < kPoints; ++i) {
        const double x = lo + (i + 0.5) * step + arm[j].loss;
        density[j][i] =
            x <= 0 || x >= 1
                ? 0
                : step * std::exp(norm + (a - 1) * std::log(x) + (b - 1) * std::log1p(-x));
      }
      const std::array<double, kPoints> below = Below(density[j]);
      for (int i = 0; i < kPoints; ++i) others[i] *= below[i];
    }
    for (int j = 0; j < s.size; ++j) {
      if (!s.open[j]) continue;
      const std::array<double, kPoints> below = Below(density[j]);
      for (int i = 0; i < kPoints; ++i) p[j] += density[j][i] * (others[i] / below[i]);
    }
  }
  // The probability of lying below each point.
  static std::array<double, kPoints> Below(const std::array<double, kPoints>& density) {
    std::array<double, kPoints> below;
    double above = 0;
    for (int i = kPoints - 1; i >= 0; --i) {
      below[i] = std::max(1e-300, 1 - above - 0.5 * density[i]);
      above += density[i];
    }
    return below;
  }
  Config config_;
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_THOMPSON_THOMPSON_H_
