#ifndef SLUICE_POLICIES_SEARCH_GREEDY_H_
#define SLUICE_POLICIES_SEARCH_GREEDY_H_
// Greedy search of plans, in two halves that a run of enough evaluations has both of:
//
//   descend   from the dearest plan by the change that loses the least quality a cost saved, until
//             the budget is met (lazy greedy: Minoux, Accelerated Greedy Algorithms, 1978)
//   climb     from the best plan within the budget, by changes of one slot and exchanges of two
//             that stay within it
//
// The way down only pays where it can be gone: each of its steps needs changes measured at that
// step. Short of that its last steps are blind, and the plan they come to is worse than one that
// was within the budget from the beginning.
#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "absl/status/status.h"
#include "sluice/api/check.h"
#include "sluice/policies/search/problem.h"

SLUICE_BEGIN_NAMESPACE
namespace search_internal {
// Losses found earlier stand until their change is the best one and is tried again; when only the
// last evaluation is left, which is the plan's own, they decide as they are.
inline absl::Status Descend(const SearchProblem& p, Evaluations& e) {
  struct Change {
    size_t slot;
    int choice;
    double score;  // quality gained (mostly < 0) a cost saved
    int64_t step;  // at which it was found
  };
  Plan now = Extreme(p, true);
  SLUICE_ASSIGN_OR_RETURN(double quality, e.Quality(now));
  std::vector<Change> changes;
  for (size_t i = 0; i < now.size(); ++i) {
    for (size_t k = 0; k < p.cost[i].size(); ++k)
      changes.push_back({i, static_cast<int>(k), HUGE_VAL, -1});
  }
  for (int64_t step = 0; !e.Fits(e.Cost(now));) {
    const Change* best = nullptr;
    for (const Change& c : changes) {
      const auto& cost = p.cost[c.slot];
      if (!(cost[now[c.slot]] > cost[c.choice])) continue;
      if (best == nullptr || c.score > best->score) best = &c;
    }
    Change& c = changes[best - changes.data()];
    Plan changed = now;
    changed[c.slot] = c.choice;
    if (c.step == step || e.last()) {  // known for this plan, or never to be known better
      now = changed;
      ++step;
      if (!e.last()) {
        SLUICE_ASSIGN_OR_RETURN(quality, e.Quality(now));  // remembered: it was just tried
      }
      continue;
    }
    SLUICE_ASSIGN_OR_RETURN(const double q, e.Quality(changed));
    const double saved = p.cost[c.slot][now[c.slot]] - p.cost[c.slot][c.choice];
    // A change that loses nothing is better the more it saves.
    c.score = q >= quality ? (q - quality) + saved * 1e-9 : (q - quality) / saved;
    c.step = step;
  }
  return e.Quality(now).status();
}

// Climbs by what choices are expected to be worth: a slot's part of what a choice is worth in all
// slots, then what moves have shown. A move changes one slot, and where that costs too much, lowers
// those of the others that are expected to lose least a cost saved. The move expected to gain most
// is tried next; one that gains is kept.
class Climb {
 public:
  Climb(const SearchProblem& p, Evaluations& e) : p_(p), e_(e) {
    for (const auto& c : p.cost) worth_.emplace_back(c.size(), 0.0);
  }

  // From the best plan so far. O((slots choices)^2) an evaluation.
  absl::Status Run() {
    now_ = e_.best.plan;
    quality_ = e_.best.quality;
    tried_.insert(now_);
    SLUICE_RETURN_IF_ERROR(LearnFromUniform());
    while (!e_.spent()) {
      const Plan next = Best();
      if (next.empty()) return absl::OkStatus();
      SLUICE_ASSIGN_OR_RETURN(const double q, e_.Quality(next));
      tried_.insert(next);
      Learn(next, q);
      if (!(q > quality_)) continue;
      now_ = next;
      quality_ = q;
    }
    return absl::OkStatus();
  }

 private:
  double Worth(size_t slot, int choice) const { return worth_[slot][static_cast<size_t>(choice)]; }
  double Expected(const Plan& plan) const {
    double gain = 0;
    for (size_t i = 0; i < plan.size(); ++i) gain += Worth(i, plan[i]) - Worth(i, now_[i]);
    return gain;
  }

  // Where there are many evaluations, what dear choices are worth everywhere is asked for as well.
  // What is not known is taken for as good as the best that is.
  absl::Status LearnFromUniform() {
    const std::vector<Plan> uniform = UniformPlans(p_);
    const auto slots = static_cast<double>(p_.cost.size());
    const bool many = e_.left() >= 4 * std::ssize(uniform);
    double most = -INFINITY;
    for (const Plan& plan : uniform) {
      if (many) SLUICE_RETURN_IF_ERROR(e_.Quality(plan).status());
      const double q = e_.Known(plan);
      if (std::isfinite(q)) most = std::max(most, q / slots);
    }
    if (!std::isfinite(most)) return absl::OkStatus();
    for (const Plan& plan : uniform) {
      const double q = e_.Known(plan);
      for (size_t i = 0; i < plan.size(); ++i)
        worth_[i][static_cast<size_t>(plan[i])] = std::isfinite(q) ? q / slots : most;
    }
    return absl::OkStatus();
  }

  // A surprise is shared by the slots that changed; what is no number is as bad as the plan is.
  void Learn(const Plan& next, double q) {
    double changed = 0;
    for (size_t i = 0; i < next.size(); ++i) changed += next[i] != now_[i] ? 1 : 0;
    const double surprise = std::isfinite(q) && std::isfinite(quality_)
                                ? (q - quality_ - Expected(next)) / changed
                                : -std::abs(quality_);
    if (!std::isfinite(surprise)) return;
    for (size_t i = 0; i < next.size(); ++i) {
      if (next[i] != now_[i]) worth_[i][static_cast<size_t>(next[i])] += surprise;
    }
  }

  // The move to try next, as the plan that it leads to; empty where all were tried. Ties: the
  // first.
  Plan Best() const {
    Plan best;
    double most = -INFINITY;
    for (size_t i = 0; i < now_.size(); ++i) {
      for (size_t k = 0; k < p_.cost[i].size(); ++k) {
        if (static_cast<int>(k) == now_[i]) continue;
        Plan next = now_;
        next[i] = static_cast<int>(k);
        if (!PayFor(i, next) || tried_.contains(next)) continue;
        const double gain = Expected(next);
        if (!(gain > most)) continue;
        best = std::move(next);
        most = gain;
      }
    }
    return best;
  }
  // Lowers slots but `raised` until the plan fits; false: it cannot.
  bool PayFor(size_t raised, Plan& plan) const {
    while (!e_.Fits(e_.Cost(plan))) {
      double least = INFINITY;
      size_t slot = 0;
      int choice = -1;
      for (size_t i = 0; i < plan.size(); ++i) {
        for (size_t k = 0; i != raised && k < p_.cost[i].size(); ++k) {
          const double saved = p_.cost[i][static_cast<size_t>(plan[i])] - p_.cost[i][k];
          if (!(saved > 0)) continue;
          const double lost = (Worth(i, plan[i]) - worth_[i][k]) / saved;
          if (choice >= 0 && !(lost < least)) continue;
          least = lost;
          slot = i;
          choice = static_cast<int>(k);
        }
      }
      if (choice < 0) return false;
      plan[slot] = choice;
    }
    return true;
  }

  const SearchProblem& p_;
  Evaluations& e_;
  Plan now_;
  double quality_ = 0;
  Mixture worth_;  // what a choice is expected to add, of every slot, up to a constant
  std::set<Plan> tried_;
};

// The way down is gone where evaluations reach for measuring every change twice.
inline absl::Status Greedy(const SearchProblem& p, Evaluations& e) {
  SLUICE_RETURN_IF_ERROR(TryUniform(p, e));
  int64_t changes = 0;
  for (const auto& c : p.cost) changes += static_cast<int64_t>(c.size()) - 1;
  if (e.best.plan.empty() || e.left() >= 2 * changes) SLUICE_RETURN_IF_ERROR(Descend(p, e));
  return Climb(p, e).Run();
}
}  // namespace search_internal
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_SEARCH_GREEDY_H_
