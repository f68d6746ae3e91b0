#ifndef SLUICE_POLICIES_SEARCH_WITHIN_H_
#define SLUICE_POLICIES_SEARCH_WITHIN_H_
// Searches for the cheapest plan, one choice for every slot, whose losses stay within limits: the
// least attention time with perplexity within 1 % and facts within 3 points. SearchPlan asks the
// other question, the best quality within a cost.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/policies/search/search.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
struct WithinProblem {
  std::vector<std::vector<double>> cost;  // [slot][choice], additive; all slots have these choices
  // What a plan loses against choice 0 everywhere, one number a limit, in its unit; what costs
  // time. Choice 0 everywhere is the reference and is not asked for.
  std::function<absl::StatusOr<std::vector<double>>(const Plan&)> losses;
  std::vector<double> limits;  // of the losses, each at least 0
};
struct WithinResult {
  Plan plan;
  double cost = 0;
  std::vector<double> losses;
  int64_t evaluations = 0;  // of different plans, uniform ones among them
  // Where the plan does not hold elsewhere: what else kept the limits, from cheap to dear, each at
  // least a twentieth dearer than the one before, since plans side by side fail alike; at last the
  // reference.
  std::vector<Plan> safer;
};

namespace within_internal {
// Remembers what was evaluated, keeps the cheapest plan within the limits.
class Tried {
 public:
  Tried(const WithinProblem& p, const SearchOptions& o) : p_(p), o_(o) {
    const Plan reference(p.cost.size(), 0);
    const std::vector<double> none(p.limits.size(), 0.0);
    known_[reference] = none;
    best = {reference, Cost(reference), none, 0, {}};
  }
  double Cost(const Plan& plan) const {
    double cost = 0;
    for (size_t i = 0; i < plan.size(); ++i) cost += p_.cost[i][plan[i]];
    return cost;
  }
  bool spent() const { return count() >= o_.evaluations; }
  int64_t count() const { return std::ssize(known_) - 1; }  // the reference was known
  // The largest loss as a share of its limit: within the limits up to 1. A loss that is not a
  // number is beyond any limit.
  absl::StatusOr<double> Use(const Plan& plan) {
    auto at = known_.find(plan);
    if (at == known_.end()) {
      SLUICE_ASSIGN_OR_RETURN(const std::vector<double> losses, p_.losses(plan));
      at = known_.emplace(plan, losses).first;
      if (o_.progress) o_.progress(count());
    }
    const double use = Use(at->second);
    const double cost = Cost(plan);
    if (use <= 1 && cost < best.cost) best = {plan, cost, at->second, 0, {}};
    return use;
  }
  // WithinResult::safer, of all that were tried.
  std::vector<Plan> Safer() const {
    std::vector<std::pair<double, Plan>> by_cost;
    for (const auto& [plan, losses] : known_) by_cost.emplace_back(Cost(plan), plan);
    std::sort(by_cost.begin(), by_cost.end());
    constexpr double kDearer = 1.05;
    std::vector<Plan> safer;
    double last = best.cost;
    const Plan reference(p_.cost.size(), 0);
    for (const auto& [cost, plan] : by_cost) {
      if (plan == reference || cost < kDearer * last || Use(known_.at(plan)) > 1) continue;
      last = cost;
      safer.push_back(plan);
    }
    if (best.plan != reference) safer.push_back(reference);
    return safer;
  }
  WithinResult best;

 private:
  double Use(const std::vector<double>& losses) const {
    double use = -HUGE_VAL;
    for (size_t i = 0; i < p_.limits.size(); ++i) {
      const double loss = losses[i];
      const double share = p_.limits[i] > 0 ? loss / p_.limits[i] : loss > 0 ? HUGE_VAL : 0;
      use = std::max(use, std::isnan(share) ? HUGE_VAL : share);
    }
    return use;
  }
  const WithinProblem& p_;
  const SearchOptions& o_;
  std::map<Plan, std::vector<double>> known_;
};

inline absl::Status Check(const WithinProblem& p, const SearchOptions& o) {
  if (p.cost.empty() || p.cost[0].size() < 2 || p.limits.empty() || o.evaluations < 1)
    return absl::InvalidArgumentError(absl::StrCat(
        "search: ", p.cost.size(), " slots, ", p.limits.size(), " limits and ", o.evaluations,
        " evaluations; wanted 1 of each or more, and two choices in every slot"));
  for (const auto& choices : p.cost) {
    if (choices.size() != p.cost[0].size())
      return absl::InvalidArgumentError("search: slots of different choices");
    for (double cost : choices) {
      if (!(cost >= 0) || std::isinf(cost))
        return absl::InvalidArgumentError(absl::StrCat("search: a choice costs ", cost));
    }
  }
  for (double limit : p.limits) {
    if (!(limit >= 0) || std::isinf(limit))
      return absl::InvalidArgumentError(absl::StrCat("search: a limit of ", limit));
  }
  return absl::OkStatus();
}

// A change of one slot, and what of the limits it is expected to take.
struct Swap {
  size_t slot = 0;
  int choice = 0;
  double use = 0;
  bool refused = false;
};

// Steps down from a plan within the limits by the swap that saves most for what it is expected to
// lose: at first its part of what the choice loses in all slots, then what was seen. One that went
// beyond a limit is not tried again, since what it would add to only lost more.
class Descent {
 public:
  Descent(const WithinProblem& p, Tried& tried, const std::vector<double>& uniform)
      : p_(p), tried_(tried) {
    const auto slots = static_cast<double>(p.cost.size());
    for (size_t slot = 0; slot < p.cost.size(); ++slot) {
      for (size_t choice = 0; choice < uniform.size(); ++choice) {
        const double use = std::isfinite(uniform[choice]) ? uniform[choice] / slots : 1;
        swaps_.push_back({slot, static_cast<int>(choice), use, false});
      }
    }
  }
  // Where a choice misses the limits narrowly in all slots, the way down from the reference is
  // long. This one begins at the cheapest plan and gives slots back: at first by what is foretold,
  // then by what is measured, until the plan is within the limits.
  absl::StatusOr<Plan> Cheapest() {
    Plan now(p_.cost.size(), 0);
    for (const Swap& swap : swaps_) {
      if (p_.cost[swap.slot][swap.choice] < p_.cost[swap.slot][now[swap.slot]])
        now[swap.slot] = swap.choice;
    }
    while (!tried_.spent()) {
      double foretold = 0;
      for (size_t slot = 0; slot < now.size(); ++slot) foretold += Of(now, slot).use;
      if (foretold <= 1) {
        SLUICE_ASSIGN_OR_RETURN(const double use, tried_.Use(now));
        if (use <= 1) return now;
      }
      const Swap* back = GiveBack(now);
      if (back == nullptr) break;
      now[back->slot] = back->choice;
    }
    return Plan(tried_.best.plan);
  }
  absl::Status Run(Plan now) {
    SLUICE_ASSIGN_OR_RETURN(double use, tried_.Use(now));
    while (!tried_.spent()) {
      Swap* swap = Best(now, use);
      if (swap == nullptr) return absl::OkStatus();
      Plan next = now;
      next[swap->slot] = swap->choice;
      SLUICE_ASSIGN_OR_RETURN(const double reached, tried_.Use(next));
      swap->refused = reached > 1;
      if (swap->refused) continue;
      Of(now, swap->slot).use = swap->use - (reached - use);
      now = next;
      use = reached;
    }
    return absl::OkStatus();
  }

 private:
  Swap& Of(const Plan& plan, size_t slot) {
    return swaps_[slot * p_.cost[slot].size() + static_cast<size_t>(plan[slot])];
  }
  // The swap that takes most off the limits for what it costs, or null where all loses least.
  const Swap* GiveBack(const Plan& now) {
    const Swap* best = nullptr;
    double best_score = 0;
    for (const Swap& swap : swaps_) {
      const double cost = p_.cost[swap.slot][swap.choice] - p_.cost[swap.slot][now[swap.slot]];
      const double kept = Of(now, swap.slot).use - swap.use;
      if (!(kept > 0)) continue;
      // What is cheaper and loses less is taken at once.
      const double score = kept / std::max(cost, 1e-9);
      if (score <= best_score) continue;
      best = &swap;
      best_score = score;
    }
    return best;
  }
  // The swap to try from here, or null. Those that are expected to fit come first.
  Swap* Best(const Plan& now, double use) {
    Swap* best = nullptr;
    bool best_fits = false;
    double best_score = 0;
    for (Swap& swap : swaps_) {
      const double saved = p_.cost[swap.slot][now[swap.slot]] - p_.cost[swap.slot][swap.choice];
      if (swap.refused || !(saved > 0)) continue;
      const double lost = swap.use - Of(now, swap.slot).use;
      const bool fits = use + lost <= 1;
      // What loses next to nothing counts by what it saves.
      const double score = saved / std::max(lost, 1e-3);
      if (best != nullptr && (best_fits != fits ? best_fits : score <= best_score)) continue;
      best = &swap;
      best_fits = fits;
      best_score = score;
    }
    return best;
  }

  const WithinProblem& p_;
  Tried& tried_;
  std::vector<Swap> swaps_;
};
}  // namespace within_internal

// Evaluates every choice in all slots, then gives slots back from the cheapest plan until it keeps
// the limits, and steps down from there and from the best choice for all slots; with `random`,
// draws plans instead (the control, which sees the uniform plans as well). Choice 0 everywhere
// keeps every limit, so that there is always a plan. Ties keep the earlier. Deterministic from its
// seed.
inline absl::StatusOr<WithinResult> SearchWithin(const WithinProblem& p, bool random,
                                                 const SearchOptions& o) {
  SLUICE_RETURN_IF_ERROR(within_internal::Check(p, o));
  within_internal::Tried tried(p, o);
  const size_t slots = p.cost.size();
  const size_t choices = p.cost[0].size();
  std::vector<double> uniform = {0};
  for (size_t choice = 1; choice < choices; ++choice) {
    SLUICE_ASSIGN_OR_RETURN(const double use, tried.Use(Plan(slots, static_cast<int>(choice))));
    uniform.push_back(use);
  }
  if (random) {
    // Spaces smaller than the evaluations run dry: stop after as many repeats.
    const auto most = 20 * static_cast<uint64_t>(o.evaluations);
    for (uint64_t draw = 0; !tried.spent() && draw < most; ++draw) {
      Plan plan;
      for (size_t slot = 0; slot < slots; ++slot)
        plan.push_back(static_cast<int>(RandomUniform({o.seed, draw, slot, 0, 3}) *
                                        static_cast<double>(choices)));
      SLUICE_RETURN_IF_ERROR(tried.Use(plan).status());
    }
  } else {
    // What one way refused the other may take: each learns for itself.
    const Plan best_uniform = tried.best.plan;
    within_internal::Descent from_cheapest(p, tried, uniform);
    SLUICE_ASSIGN_OR_RETURN(const Plan start, from_cheapest.Cheapest());
    SLUICE_RETURN_IF_ERROR(from_cheapest.Run(start));
    SLUICE_RETURN_IF_ERROR(within_internal::Descent(p, tried, uniform).Run(best_uniform));
  }
  WithinResult result = tried.best;
  result.evaluations = tried.count();
  result.safer = tried.Safer();
  return result;
}

// How many plans, the one that was found and then safer ones, were asked whether they hold
// elsewhere, and whether the last of them does. Stops at the first that does, and after `most`.
struct StepBack {
  int64_t asked = 0;
  bool holds = false;
};
inline absl::StatusOr<StepBack> UntilOneHolds(
    const WithinResult& found, int64_t most,
    const std::function<absl::StatusOr<bool>(const Plan&)>& holds) {
  StepBack steps;
  while (!steps.holds && steps.asked < std::min(most, 1 + std::ssize(found.safer))) {
    const Plan& plan = steps.asked == 0 ? found.plan : found.safer[steps.asked - 1];
    SLUICE_ASSIGN_OR_RETURN(steps.holds, holds(plan));
    ++steps.asked;
  }
  return steps;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_SEARCH_WITHIN_H_
