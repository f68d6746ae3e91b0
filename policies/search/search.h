#ifndef SLUICE_POLICIES_SEARCH_SEARCH_H_
#define SLUICE_POLICIES_SEARCH_SEARCH_H_
// Searches for a plan, one choice for every slot (which router for each layer, how many keys for
// each head), of the best quality within a cost. All methods see the same problem and the same
// number of evaluations, so that they compare; random search is the control that the others must
// beat (search/control.h says whether they do). An evaluation is a plan that was not tried before,
// or a mixture of plans: a repeat is remembered and costs nothing, for the control as for all.
#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/check.h"
#include "sluice/policies/common/budget.h"
#include "sluice/policies/search/dass.h"
#include "sluice/policies/search/genetic.h"
#include "sluice/policies/search/greedy.h"
#include "sluice/policies/search/problem.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
enum class SearchMethod : uint8_t { kRandom, kGreedy, kGenetic, kDynamic, kBudget, kDass };
inline constexpr const char* kSearchMethods[] = {"random",  "greedy", "genetic",
                                                 "dynamic", "budget", "dass"};

namespace search_internal {
// Gains of every choice alone, the others as in `base`.
inline absl::StatusOr<std::vector<std::vector<BudgetOption>>> Alone(const SearchProblem& p,
                                                                    const Plan& base,
                                                                    Evaluations& e) {
  SLUICE_ASSIGN_OR_RETURN(const double reference, e.Quality(base));
  std::vector<std::vector<BudgetOption>> items(p.cost.size());
  for (size_t i = 0; i < p.cost.size(); ++i) {
    for (size_t k = 0; k < p.cost[i].size(); ++k) {
      Plan changed = base;
      changed[i] = static_cast<int>(k);
      SLUICE_ASSIGN_OR_RETURN(const double q, e.Quality(changed));
      items[i].push_back({p.cost[i][k], q - reference});
    }
  }
  return items;
}
}  // namespace search_internal

// Best total gain with one option an item and a total cost of at most `budget`. What an option
// costs above its item's cheapest is rounded up to a step of what the budget leaves above all the
// cheapest, so the budget holds. O(items * options * steps).
inline absl::StatusOr<Plan> DynamicProgram(absl::Span<const std::vector<BudgetOption>> items,
                                           double budget, int steps = 4000) {
  std::vector<double> best(static_cast<size_t>(steps) + 1, 0);
  std::vector<std::vector<int>> took(items.size(),
                                     std::vector<int>(static_cast<size_t>(steps) + 1, -1));
  std::vector<double> cheapest;
  double left = budget * (1 + 1e-12);
  for (const auto& item : items) {
    double least = HUGE_VAL;
    for (const BudgetOption& o : item) least = std::min(least, o.cost);
    cheapest.push_back(least);
    left -= least;
  }
  if (!(left >= 0))
    return absl::OutOfRangeError(absl::StrCat("budget ", budget, " is below the cheapest plan"));
  const auto weight = [&](size_t item, double cost) {
    const double above = cost - cheapest[item];
    return above > 0 ? (left > 0 ? std::ceil(above / left * steps - 1e-9) : HUGE_VAL) : 0.0;
  };
  for (size_t i = 0; i < items.size(); ++i) {
    std::vector<double> next(best.size(), -INFINITY);
    for (size_t k = 0; k < items[i].size(); ++k) {
      const double w = weight(i, items[i][k].cost);
      if (!(w >= 0) || w > steps || std::isnan(items[i][k].gain)) continue;
      const auto step = static_cast<size_t>(w);
      for (size_t s = step; s < next.size(); ++s) {
        const double gain = best[s - step] + items[i][k].gain;
        if (gain > next[s]) {
          next[s] = gain;
          took[i][s] = static_cast<int>(k);
        }
      }
    }
    best = std::move(next);
  }
  Plan plan(items.size());
  size_t s = best.size() - 1;
  for (size_t i = items.size(); i-- > 0;) {
    plan[i] = took[i][s];
    if (plan[i] < 0)
      return absl::OutOfRangeError(absl::StrCat("budget ", budget, " is below the cheapest plan"));
    s -= static_cast<size_t>(weight(i, items[i][plan[i]].cost));
  }
  return plan;
}

namespace search_internal {
inline absl::Status Check(const SearchProblem& p, SearchMethod method, const SearchOptions& o) {
  const int64_t least = method == SearchMethod::kRandom ? 1 : 2;
  if (p.cost.empty() || o.evaluations < least) {
    return absl::InvalidArgumentError(absl::StrCat("search: ", p.cost.size(), " slots and ",
                                                   o.evaluations, " evaluations; wanted 1 and ",
                                                   least, " or more"));
  }
  for (const auto& c : p.cost) {
    if (c.empty()) return absl::InvalidArgumentError("search: a slot without choices");
    for (double x : c) {
      if (!(x >= 0) || std::isinf(x))
        return absl::InvalidArgumentError(absl::StrCat("search: a choice costs ", x));
    }
  }
  return absl::OkStatus();
}
inline absl::Status Random(const SearchProblem& p, const SearchOptions& o, Evaluations& e) {
  // Spaces smaller than the evaluations run dry: stop after as many repeats.
  for (uint64_t draw = 0; !e.spent() && draw < 20 * static_cast<uint64_t>(o.evaluations); ++draw) {
    Plan plan;
    for (size_t i = 0; i < p.cost.size(); ++i)
      plan.push_back(static_cast<int>(RandomUniform({o.seed, draw, i, 0, 1}) *
                                      static_cast<double>(p.cost[i].size())));
    e.Repair(plan, draw);
    if (draw % 2 == 1) e.Fill(plan, draw);  // half of the plans use the budget up
    SLUICE_RETURN_IF_ERROR(e.Quality(plan).status());
  }
  return absl::OkStatus();
}
// A gene a slot, in [0, 1]: its choices in equal parts. Half of the first population is the best
// uniform plan within the budget with every fourth slot drawn anew, the rest is drawn.
inline absl::Status Genetic(const SearchProblem& p, const SearchOptions& o, Evaluations& e) {
  SLUICE_RETURN_IF_ERROR(TryUniform(p, e));
  GeneticOptions g;
  g.population = std::clamp<int64_t>(o.evaluations / 8, 4, 32);
  g.generations = 20 * o.evaluations / g.population + 1;  // repeats cost nothing
  g.fixed = 0;
  g.max = 1;
  g.seed = o.seed;
  g.mutation = 1;
  const auto choices = [&](size_t slot) { return static_cast<double>(p.cost[slot].size()); };
  const auto encode = [&](const Plan& plan) {
    std::vector<double> genes;
    for (size_t i = 0; i < plan.size(); ++i) genes.push_back((plan[i] + 0.5) / choices(i));
    return genes;
  };
  const auto decode = [&](const std::vector<double>& genes) {
    Plan plan;
    for (size_t i = 0; i < genes.size(); ++i)
      plan.push_back(static_cast<int>(std::clamp(genes[i] * choices(i), 0.0, choices(i) - 1)));
    return plan;
  };
  uint64_t draw = 0;
  const auto repair = [&](std::vector<double>& genes) {
    Plan plan = decode(genes);
    e.Repair(plan, ++draw);
    if (draw % 2 == 1) e.Fill(plan, draw);  // as the control does
    genes = encode(plan);
  };
  const auto fitness = [&](const std::vector<double>& genes) {
    return e.spent() ? absl::StatusOr<double>(-INFINITY) : e.Quality(decode(genes));
  };

  std::vector<std::vector<double>> starts = {std::vector<double>(p.cost.size(), 0.5)};
  for (int64_t m = 0; !e.best.plan.empty() && m < g.population / 2; ++m) {
    const auto member = static_cast<uint64_t>(m);
    starts.push_back(encode(e.best.plan));
    for (size_t i = 0; m > 0 && i < p.cost.size(); ++i) {
      if (RandomUniform({o.seed, member, i, 0, 5}) < 0.25)
        starts.back()[i] = RandomUniform({o.seed, member, i, 1, 5});
    }
  }
  return Evolve(p.cost.size(), starts, g, repair, fitness).status();
}
// Takes gains of single choices as additive, measured where the plan will be: around the best
// uniform plan within the budget, not around the dearest, from which a plan of half its cost is too
// far to tell. What evaluations are left for measures them again around the plan that came of it,
// while that is an improvement.
inline absl::Status Additive(const SearchProblem& p, const SearchOptions& o, SearchMethod method,
                             Evaluations& e) {
  size_t alone = 1;
  for (const auto& c : p.cost) alone += c.size() - 1;
  if (static_cast<int64_t>(alone) + 1 > o.evaluations)
    return absl::InvalidArgumentError(absl::StrCat(
        "search: ", alone + 1, " evaluations are needed, ", o.evaluations, " allowed"));
  // Uniform plans that the measurement leaves no room for are passed over.
  const auto left = [&] { return e.left() - static_cast<int64_t>(alone); };
  for (const Plan& plan : UniformPlans(p)) {
    if (left() > 0 && e.Fits(e.Cost(plan))) SLUICE_RETURN_IF_ERROR(e.Quality(plan).status());
  }
  Plan base = e.best.plan.empty() ? Extreme(p, true) : e.best.plan;
  do {
    SLUICE_ASSIGN_OR_RETURN(const auto items, Alone(p, base, e));
    SLUICE_ASSIGN_OR_RETURN(const Plan plan, method == SearchMethod::kDynamic
                                                 ? DynamicProgram(items, p.budget)
                                                 : AllocateByGain(items, p.budget));
    SLUICE_RETURN_IF_ERROR(e.Quality(plan).status());
    if (e.best.plan == base) break;
    base = e.best.plan;
  } while (left() >= 0);
  return absl::OkStatus();
}
inline absl::Status Search(const SearchProblem& p, const SearchOptions& o, SearchMethod method,
                           Evaluations& e) {
  switch (method) {
    case SearchMethod::kRandom:
      return Random(p, o, e);
    case SearchMethod::kGreedy:
      return Greedy(p, e);
    case SearchMethod::kGenetic:
      return Genetic(p, o, e);
    case SearchMethod::kDynamic:
    case SearchMethod::kBudget:
      return Additive(p, o, method, e);
    case SearchMethod::kDass:
      return DassSearch(p, o, e).Run();
  }
  return absl::OkStatus();
}
}  // namespace search_internal

// Dynamic programming and budget allocation measure every choice alone and take the gains as
// additive; the plan they come to is then evaluated. They stop with an error when `evaluations`
// does not reach for that.
inline absl::StatusOr<SearchResult> SearchPlan(const SearchProblem& p, SearchMethod method,
                                               const SearchOptions& o) {
  using namespace search_internal;
  SLUICE_RETURN_IF_ERROR(Check(p, method, o));
  Evaluations e(p, o);
  const Plan cheapest = Extreme(p, false);
  if (!e.Fits(e.Cost(cheapest)))
    return absl::OutOfRangeError(absl::StrCat("search: budget ", p.budget,
                                              " is below the cheapest plan, ", e.Cost(cheapest)));
  SLUICE_RETURN_IF_ERROR(Search(p, o, method, e));
  SearchResult r = e.best;
  r.evaluations = e.count();
  if (r.plan.empty()) {  // nothing within the budget was met on the way
    SLUICE_ASSIGN_OR_RETURN(r.quality, e.Quality(cheapest));
    r.plan = cheapest;
    r.cost = e.Cost(cheapest);
  }
  return r;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_SEARCH_SEARCH_H_
