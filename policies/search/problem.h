#ifndef SLUICE_POLICIES_SEARCH_PROBLEM_H_
#define SLUICE_POLICIES_SEARCH_PROBLEM_H_
// What every search of plans is given, what it may spend, and what is remembered on the way.
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/api/check.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
// The choice of every slot.
using Plan = std::vector<int>;
// A plan relaxed: the share of every choice, [slot][choice]; a slot's shares sum to 1.
using Mixture = std::vector<std::vector<double>>;
struct RelaxedQuality {
  double quality = 0;
  Mixture gradient;  // of the quality, by each share
};
struct SearchProblem {
  std::vector<std::vector<double>> cost;  // [slot][choice], additive; a plan's cost is their sum
  std::function<absl::StatusOr<double>(const Plan&)> quality;  // higher is better; what costs time
  double budget = 0;
  // Where the choices can be mixed (outputs or weights of operators), the quality of a mixture and
  // its gradient. Only DASS asks; absent: it estimates the gradient from plans.
  std::function<absl::StatusOr<RelaxedQuality>(const Mixture&)> relaxed = nullptr;
};
// Inferred: neither the paper's abstract nor its program's description gives settings of the
// architecture's gradient.
struct DassOptions {
  double rate = 1;       // of the largest slope's logit, a step
  int64_t batch = 4;     // plans an estimated gradient is made from
  double relaxed = 0.7;  // share of the evaluations that the relaxation gets; the rest tries plans
};
struct SearchOptions {
  int64_t evaluations = 100;  // of different plans and of mixtures
  uint64_t seed = 1;
  std::function<void(int64_t done)> progress = nullptr;
  DassOptions dass = {};
};
struct SearchResult {
  Plan plan;
  double quality = 0, cost = 0;
  int64_t evaluations = 0;
  // The best quality within the budget after each evaluation, -inf before the first; never falls.
  std::vector<double> history = {};
};

namespace search_internal {
// Remembers what was evaluated, keeps the best plan within the budget.
class Evaluations {
 public:
  Evaluations(const SearchProblem& p, const SearchOptions& o) : p_(p), o_(o) {}
  double Cost(const Plan& plan) const {
    double c = 0;
    for (size_t i = 0; i < plan.size(); ++i) c += p_.cost[i][plan[i]];
    return c;
  }
  bool Fits(double cost) const { return cost <= p_.budget * (1 + 1e-9); }
  int64_t left() const { return o_.evaluations - count(); }
  bool spent() const { return left() <= 0; }
  bool last() const { return left() <= 1; }  // the one that is left is the last
  absl::StatusOr<double> Quality(const Plan& plan) {
    auto at = known_.find(plan);
    const bool fresh = at == known_.end();
    if (fresh) {
      SLUICE_ASSIGN_OR_RETURN(double q, p_.quality(plan));
      if (std::isnan(q)) q = -INFINITY;
      at = known_.emplace(plan, q).first;
    }
    const double cost = Cost(plan);
    // Of equal quality the cheaper; of equal both the first.
    if (Fits(cost) && (best.plan.empty() || at->second > best.quality ||
                       (at->second == best.quality && cost < best.cost))) {
      best.plan = plan;
      best.quality = at->second;
      best.cost = cost;
    }
    if (fresh) Spend();
    return at->second;
  }
  // NaN: was not tried.
  double Known(const Plan& plan) const {
    const auto at = known_.find(plan);
    return at == known_.end() ? NAN : at->second;
  }
  // Precondition: the problem has a relaxation.
  absl::StatusOr<RelaxedQuality> Relaxed(const Mixture& mixture) {
    SLUICE_ASSIGN_OR_RETURN(RelaxedQuality r, p_.relaxed(mixture));
    ++mixtures_;
    Spend();
    return r;
  }
  // Lowers random slots to cheaper choices until the plan fits. Precondition: the cheapest plan
  // fits.
  void Repair(Plan& plan, uint64_t draw) const {
    for (uint64_t step = 0; !Fits(Cost(plan)); ++step) {
      const auto i = static_cast<size_t>(RandomUniform({o_.seed, draw, step, 0, 2}) *
                                         static_cast<double>(plan.size()));
      int next = -1;  // the dearest of the cheaper ones
      for (size_t k = 0; k < p_.cost[i].size(); ++k) {
        if (p_.cost[i][k] < p_.cost[i][plan[i]] && (next < 0 || p_.cost[i][k] > p_.cost[i][next]))
          next = static_cast<int>(k);
      }
      if (next >= 0) plan[i] = next;
    }
  }
  // Raises random slots to dearer choices, one step each time, where the plan still fits.
  void Fill(Plan& plan, uint64_t draw) const {
    for (uint64_t step = 0; step < 4 * plan.size(); ++step) {
      const auto i = static_cast<size_t>(RandomUniform({o_.seed, draw, step, 0, 3}) *
                                         static_cast<double>(plan.size()));
      const std::vector<double>& cost = p_.cost[i];
      int next = -1;  // the cheapest of the dearer ones
      for (size_t k = 0; k < cost.size(); ++k) {
        if (cost[k] > cost[plan[i]] && (next < 0 || cost[k] < cost[next]))
          next = static_cast<int>(k);
      }
      if (next >= 0 && Fits(Cost(plan) - cost[plan[i]] + cost[next])) plan[i] = next;
    }
  }
  SearchResult best;
  int64_t count() const { return static_cast<int64_t>(known_.size()) + mixtures_; }

 private:
  void Spend() {
    best.history.push_back(best.plan.empty() ? -INFINITY : best.quality);
    if (o_.progress) o_.progress(count());
  }

  const SearchProblem& p_;
  const SearchOptions& o_;
  std::map<Plan, double> known_;
  int64_t mixtures_ = 0;
};

inline Plan Extreme(const SearchProblem& p, bool dearest) {
  Plan plan;
  for (const auto& c : p.cost) {
    size_t at = 0;
    for (size_t k = 1; k < c.size(); ++k) at = (dearest ? c[k] > c[at] : c[k] < c[at]) ? k : at;
    plan.push_back(static_cast<int>(at));
  }
  return plan;
}

// One choice everywhere; none where slots differ in how many they have.
inline std::vector<Plan> UniformPlans(const SearchProblem& p) {
  for (const auto& c : p.cost) {
    if (c.size() != p.cost[0].size()) return {};
  }
  std::vector<Plan> plans;
  for (size_t k = 0; k < p.cost[0].size(); ++k)
    plans.emplace_back(p.cost.size(), static_cast<int>(k));
  return plans;
}
// Where searches start: uniform plans need no search, keep the budget or do not at sight, and on
// real models beat most plans that are drawn. The last evaluation is left.
inline absl::Status TryUniform(const SearchProblem& p, Evaluations& e) {
  for (const Plan& plan : UniformPlans(p)) {
    if (e.last()) break;
    if (e.Fits(e.Cost(plan))) SLUICE_RETURN_IF_ERROR(e.Quality(plan).status());
  }
  return absl::OkStatus();
}
}  // namespace search_internal
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_SEARCH_PROBLEM_H_
