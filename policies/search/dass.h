#ifndef SLUICE_POLICIES_SEARCH_DASS_H_
#define SLUICE_POLICIES_SEARCH_DASS_H_
// DASS: Differentiable Architecture Search for Sparse Neural Networks (arXiv 2207.06968), over
// operators that are given. The paper adds sparse operators to the search space and evaluates
// architectures under sparsity, in three phases: train the dense network, learn the masks with the
// weights frozen, tune the weights that stay. Without training the first two are done before the
// search begins: the dense weights are the model's, and a slot's choices are its sparse operators
// (masks of pruners at several sparsities and patterns). This is the rest:
//
//   relax       a logit for every slot and choice; the softmax of a slot's logits are the shares of
//               its choices
//   budget      the shares are those closest in KL divergence whose expected cost fits:
//               softmax(logits - price * cost), of the least price that does
//   ascend      the logits along the gradient of the relaxed quality, with momentum
//   discretise  the largest share of every slot, lowered where it does not fit; then plans drawn
//               from the shares
//
// Shares begin even; estimated gradients, at the best uniform plan within the budget. Inferred (the
// search loop was not published in a form that could be read): the budget as a projection, mirror
// ascent in place of Adam, which would make every slot matter the same, and how evaluations are
// divided. Of a problem without a relaxation the expected quality of plans drawn from the shares is
// ascended, its gradient estimated from a few of them (the score function's). No claim of the
// paper's figures goes with this: nothing is trained.
//
// Never worse than its first plan, the discretised start. O(evaluations * slots * choices) besides
// the evaluations.
#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "sluice/policies/search/problem.h"

SLUICE_BEGIN_NAMESPACE
namespace search_internal {
inline Mixture LikeCosts(const SearchProblem& p) {
  Mixture m;
  for (const auto& c : p.cost) m.emplace_back(c.size(), 0.0);
  return m;
}

// softmax(logits - price * cost), a slot each.
inline Mixture SharesAt(const SearchProblem& p, const Mixture& logits, double price) {
  Mixture shares = logits;
  for (size_t i = 0; i < shares.size(); ++i) {
    double top = -INFINITY;
    for (size_t k = 0; k < shares[i].size(); ++k) {
      shares[i][k] -= price * p.cost[i][k];
      top = std::max(top, shares[i][k]);
    }
    double sum = 0;
    for (double& x : shares[i]) {
      x = std::exp(x - top);
      sum += x;
    }
    for (double& x : shares[i]) x /= sum;
  }
  return shares;
}

inline double ExpectedCost(const SearchProblem& p, const Mixture& shares) {
  double cost = 0;
  for (size_t i = 0; i < shares.size(); ++i) {
    for (size_t k = 0; k < shares[i].size(); ++k) cost += shares[i][k] * p.cost[i][k];
  }
  return cost;
}

// The shares whose expected cost fits the budget. Precondition: the cheapest plan fits.
inline Mixture SharesWithin(const SearchProblem& p, const Mixture& logits) {
  const auto fits = [&](double price) {
    return ExpectedCost(p, SharesAt(p, logits, price)) <= p.budget;
  };
  if (fits(0)) return SharesAt(p, logits, 0);
  double low = 0;
  double high = 1 / std::max(p.budget, 1e-9);
  for (int turn = 0; turn < 200 && !fits(high); ++turn) high *= 2;
  for (int turn = 0; turn < 60; ++turn) {
    const double middle = (low + high) / 2;
    (fits(middle) ? high : low) = middle;
  }
  return SharesAt(p, logits, high);
}

// The largest share of every slot (ties: the first), then, while that costs too much, the change to
// a cheaper choice that gives up the least logarithm of a share for the cost it saves.
inline Plan Discretise(const SearchProblem& p, const Evaluations& e, const Mixture& shares) {
  Plan plan;
  for (const auto& s : shares)
    plan.push_back(static_cast<int>(std::max_element(s.begin(), s.end()) - s.begin()));
  while (!e.Fits(e.Cost(plan))) {
    double least = INFINITY;
    size_t slot = 0;
    int choice = -1;
    for (size_t i = 0; i < plan.size(); ++i) {
      const double now = std::log(std::max(shares[i][plan[i]], 1e-300));
      for (size_t k = 0; k < shares[i].size(); ++k) {
        const double saved = p.cost[i][plan[i]] - p.cost[i][k];
        if (!(saved > 0)) continue;
        const double lost = (now - std::log(std::max(shares[i][k], 1e-300))) / saved;
        if (choice >= 0 && !(lost < least)) continue;
        least = lost;
        slot = i;
        choice = static_cast<int>(k);
      }
    }
    plan[slot] = choice;
  }
  return plan;
}

class DassSearch {
 public:
  DassSearch(const SearchProblem& p, const SearchOptions& o, Evaluations& e)
      : p_(p), o_(o), e_(e), logits_(LikeCosts(p)), slope_(logits_) {}

  absl::Status Run() {
    const DassOptions& d = o_.dass;
    if (!(d.rate > 0 && d.rate <= 10) || d.batch < 2 || !(d.relaxed > 0 && d.relaxed <= 1))
      return absl::InvalidArgumentError(
          absl::StrCat("dass: rate ", d.rate, ", batches of ", d.batch, " and a share of ",
                       d.relaxed, " for the relaxation; allowed: (0, 10], 2 or more and (0, 1]"));
    SLUICE_RETURN_IF_ERROR(TryLargest());
    SLUICE_RETURN_IF_ERROR(Start());
    const auto share = static_cast<int64_t>(d.relaxed * static_cast<double>(o_.evaluations));
    const int64_t relaxed = std::min(share, o_.evaluations - 1);  // the last one tries its plan
    for (int64_t step = 0; e_.count() < relaxed && step < 20 * relaxed; ++step) {
      Mixture along = LikeCosts(p_);
      const Mixture shares = SharesWithin(p_, logits_);
      SLUICE_RETURN_IF_ERROR(p_.relaxed ? Exact(shares, along) : Estimate(shares, along));
      Ascend(along);
    }
    if (!e_.spent()) SLUICE_RETURN_IF_ERROR(TryLargest());
    const Mixture shares = SharesWithin(p_, logits_);
    for (int64_t turn = 0; !e_.spent() && turn < 20 * o_.evaluations; ++turn)
      SLUICE_RETURN_IF_ERROR(e_.Quality(Draw(shares)).status());
    return absl::OkStatus();
  }

 private:
  // Without a gradient, plans drawn from even shares say little of the plans that matter: the
  // shares begin at the best uniform plan, where that beats the discretised even ones.
  absl::Status Start() {
    const Plan even = e_.best.plan;
    SLUICE_RETURN_IF_ERROR(TryUniform(p_, e_));
    if (p_.relaxed || e_.best.plan == even) return absl::OkStatus();
    for (size_t i = 0; i < logits_.size(); ++i) {
      const auto others = static_cast<double>(logits_[i].size() - 1);
      if (others > 0)
        logits_[i][static_cast<size_t>(e_.best.plan[i])] = std::log(kTrust / (1 - kTrust) * others);
    }
    return absl::OkStatus();
  }

  absl::Status TryLargest() {
    return e_.Quality(Discretise(p_, e_, SharesWithin(p_, logits_))).status();
  }

  // The slot's mean does not move its shares. Logits ascend along it as it is, which is mirror
  // ascent of the shares; the estimate below is this times the shares.
  absl::Status Exact(const Mixture& shares, Mixture& along) {
    SLUICE_ASSIGN_OR_RETURN(const RelaxedQuality r, e_.Relaxed(shares));
    if (r.gradient.size() != shares.size())
      return absl::InvalidArgumentError(absl::StrCat("dass: a gradient of ", r.gradient.size(),
                                                     " slots, wanted ", shares.size()));
    for (size_t i = 0; i < shares.size(); ++i) {
      if (r.gradient[i].size() != shares[i].size())
        return absl::InvalidArgumentError(absl::StrCat("dass: slot ", i, " has a gradient of ",
                                                       r.gradient[i].size(), " choices, wanted ",
                                                       shares[i].size()));
      double mean = 0;
      for (size_t k = 0; k < shares[i].size(); ++k) mean += shares[i][k] * r.gradient[i][k];
      for (size_t k = 0; k < shares[i].size(); ++k) along[i][k] = r.gradient[i][k] - mean;
    }
    return absl::OkStatus();
  }

  // The same of the expected quality: a plan's advantage over its batch, on the choices it made.
  // Qualities that are no numbers or infinite count as the worst that is one.
  absl::Status Estimate(const Mixture& shares, Mixture& along) {
    std::vector<Plan> plans;
    std::vector<double> quality;
    double worst = INFINITY;
    for (int64_t b = 0; b < o_.dass.batch && !e_.last(); ++b) {
      plans.push_back(Draw(shares));
      SLUICE_ASSIGN_OR_RETURN(quality.emplace_back(), e_.Quality(plans.back()));
      if (std::isfinite(quality.back())) worst = std::min(worst, quality.back());
    }
    double mean = 0;
    for (double& q : quality) {
      if (!std::isfinite(q)) q = std::isfinite(worst) ? worst : 0;
      mean += q / static_cast<double>(quality.size());
    }
    for (size_t b = 0; b < plans.size(); ++b) {
      const double advantage = (quality[b] - mean) / static_cast<double>(plans.size());
      for (size_t i = 0; i < shares.size(); ++i) {
        for (size_t k = 0; k < shares[i].size(); ++k) {
          const double made = plans[b][i] == static_cast<int>(k) ? 1 : 0;
          along[i][k] += advantage * (made - shares[i][k]);
        }
      }
    }
    return absl::OkStatus();
  }

  // Every slot by its shares, lowered where that costs too much.
  Plan Draw(const Mixture& shares) {
    const uint64_t draw = draws_++;
    Plan plan;
    for (size_t i = 0; i < shares.size(); ++i) {
      double left = RandomUniform({o_.seed, draw, i, 0, 4});
      size_t k = 0;
      for (; k + 1 < shares[i].size() && left >= shares[i][k]; ++k) left -= shares[i][k];
      plan.push_back(static_cast<int>(k));
    }
    e_.Repair(plan, draw);
    return plan;
  }

  // Every logit by the same measure, the largest slope met lately: what a slot matters more than
  // another decides which of them the budget goes to.
  void Ascend(const Mixture& along) {
    constexpr double kKept = 0.5;  // of the last step's direction
    double largest = 0;
    for (size_t i = 0; i < along.size(); ++i) {
      for (size_t k = 0; k < along[i].size(); ++k) {
        if (!std::isfinite(along[i][k])) continue;
        slope_[i][k] = kKept * slope_[i][k] + (1 - kKept) * along[i][k];
        largest = std::max(largest, std::abs(slope_[i][k]));
      }
    }
    measure_ = std::max(largest, 0.9 * measure_);
    if (!(measure_ > 0)) return;
    for (size_t i = 0; i < along.size(); ++i) {
      for (size_t k = 0; k < along[i].size(); ++k)
        logits_[i][k] += o_.dass.rate * slope_[i][k] / measure_;
    }
  }

  static constexpr double kTrust = 0.8;  // share of a start's choices

  const SearchProblem& p_;
  const SearchOptions& o_;
  Evaluations& e_;
  Mixture logits_, slope_;
  double measure_ = 0;
  uint64_t draws_ = 0;
};
}  // namespace search_internal
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_SEARCH_DASS_H_
