#ifndef SLUICE_POLICIES_EXPERIMENT_OFF_POLICY_H_
#define SLUICE_POLICIES_EXPERIMENT_OFF_POLICY_H_
// What a policy would have earned, from decisions that another one made and logged with their
// propensities. With weight w = target / propensity, reward r, the model's prediction q of what was
// done and m of what the target would do, means over the decisions of
//
//   IPS           w r
//   clipped IPS   min(w, clip) r
//   SNIPS         w r, over the mean of w       The Self-Normalized Estimator for Counterfactual
//                                               Learning (Swaminathan & Joachims, NeurIPS 2015)
//   DM            m
//   DR            m + w (r - q)                 Doubly Robust Policy Evaluation and Learning (Dudik
//                                               et al., arXiv 1103.4601)
//   SNDR          m + w (r - q) over the mean of w
//   SWITCH-DR     m + w (r - q) where w <= switch_at, else m
//                                               Optimal and Adaptive Off-policy Evaluation in
//                                               Contextual Bandits (Wang et al., arXiv 1612.01205)
//   DRos          m + shrink w / (w^2 + shrink) (r - q)
//                                               Doubly robust off-policy evaluation with shrinkage
//                                               (Su et al., arXiv 1907.09623)
//
// as Open Bandit Pipeline (Saito et al., arXiv 2008.07146) computes them.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "sluice/api/check.h"
#include "sluice/policies/common/bootstrap.h"
#include "sluice/policies/common/quantile.h"

SLUICE_BEGIN_NAMESPACE
struct LoggedDecision {
  double reward = 0;
  double propensity = 0;    // logging policy's probability of what it did, in (0, 1]
  double target = 0;        // evaluated policy's probability of the same
  double model = 0;         // predicted reward of what was done
  double model_target = 0;  // predicted reward of the evaluated policy: sum over actions of its
                            // probability * prediction
};
enum class OffPolicy : uint8_t { kIps, kClippedIps, kSnips, kDirect, kDr, kSndr, kSwitchDr, kDrOs };
inline constexpr std::array<OffPolicy, 8> kOffPolicies = {
    OffPolicy::kIps, OffPolicy::kClippedIps, OffPolicy::kSnips,    OffPolicy::kDirect,
    OffPolicy::kDr,  OffPolicy::kSndr,       OffPolicy::kSwitchDr, OffPolicy::kDrOs};
inline const char* OffPolicyName(OffPolicy how) {
  constexpr std::array<const char*, 8> kNames = {"IPS", "clipped IPS", "SNIPS",     "DM",
                                                 "DR",  "SNDR",        "SWITCH-DR", "DRos"};
  return kNames[static_cast<size_t>(how)];
}

struct OffPolicyOptions {
  double clip = 20;       // clipped IPS: the largest weight
  double switch_at = 20;  // SWITCH-DR: weights above it are left to the model
  double shrink = 400;    // DRos: a weight of sqrt(shrink) counts half
  int64_t draws = 0;      // of a percentile bootstrap over decisions; 0: normal intervals
  uint64_t seed = 1;      // of the draws
};

// When a log says enough of a target. All must hold; whoever fails one is not called reliable.
inline constexpr double kLeastEffectiveDecisions = 100;
// The mean weight is 1 in expectation where the logging policy could do all that the target does.
inline constexpr double kMostDeviationsOfMeanWeight = 4;
inline constexpr double kMostMassNeverTaken = 0.25;
inline constexpr double kMostWeightOfOneDecision = 0.05;
// A propensity below it is rare: reported, not judged.
inline constexpr double kRarePropensity = 0.01;

// How far the logged decisions are those that the target would have made.
struct Overlap {
  double effective_decisions = 0;  // Kish: (sum w)^2 / sum w^2
  double mean_weight = 0;
  double largest_weight = 0;
  double top_share = 0;     // of all weight, held by the hundredth of the decisions with most of it
  double never_taken = 0;   // target's probability of what was never done: 1 - mean weight, or 0
  double rarely_taken = 0;  // target's probability of what the logging policy did rarely
  bool reliable = false;
  std::string reason;  // why not; "": reliable
};
struct OffPolicyEstimate {
  double value = 0, low = 0, high = 0;  // 95 %
  MeanInterval gain;                    // over the mean of what was logged, paired by decision
  bool reliable = false;                // as the overlap is
  Overlap overlap;
};

// Whether every number is one and every probability is; the first that is not is named.
inline absl::Status CheckDecisions(absl::Span<const LoggedDecision> log) {
  if (log.size() < 2)
    return absl::InvalidArgumentError(
        absl::StrCat("off-policy: ", log.size(), " decisions, wanted 2 or more"));
  for (size_t i = 0; i < log.size(); ++i) {
    const LoggedDecision& d = log[i];
    if (!(d.propensity > 0 && d.propensity <= 1 + 1e-9))
      return absl::OutOfRangeError(absl::StrCat("off-policy: decision ", i, " has propensity ",
                                                d.propensity,
                                                "; without the true one nothing can be said"));
    if (!(d.target >= 0 && d.target <= 1 + 1e-9))
      return absl::OutOfRangeError(
          absl::StrCat("off-policy: decision ", i, " has target ", d.target, ", allowed 0 to 1"));
    if (!std::isfinite(d.reward) || !std::isfinite(d.model) || !std::isfinite(d.model_target))
      return absl::OutOfRangeError(
          absl::StrCat("off-policy: decision ", i, " has reward ", d.reward, ", model ", d.model,
                       " and model of the target ", d.model_target, "; allowed: finite numbers"));
  }
  return absl::OkStatus();
}
inline absl::Status CheckOffPolicyOptions(const OffPolicyOptions& o) {
  for (double x : {o.clip, o.switch_at, o.shrink}) {
    if (!(x > 0 && std::isfinite(x)))
      return absl::OutOfRangeError(
          absl::StrCat("off-policy: clip, switch_at and shrink must be above 0, got ", x));
  }
  if (o.draws < 0 || o.draws > 1000000)
    return absl::OutOfRangeError(
        absl::StrCat("off-policy: ", o.draws, " draws, allowed 0 to 1000000"));
  return absl::OkStatus();
}

namespace off_policy_internal {
// `deviation`: of the mean weight; `sum`: of the weights.
inline std::string WhyUnreliable(const Overlap& o, double deviation, double sum) {
  const double off = std::abs(o.mean_weight - 1);
  if (o.effective_decisions < kLeastEffectiveDecisions)
    return absl::StrFormat("%.1f effective decisions, wanted %.0f", o.effective_decisions,
                           kLeastEffectiveDecisions);
  if (o.never_taken > kMostMassNeverTaken)
    return absl::StrFormat("%.0f %% of what it would do was never done, allowed %.0f %%",
                           100 * o.never_taken, 100 * kMostMassNeverTaken);
  if (off > kMostDeviationsOfMeanWeight * deviation + 1e-9)
    return absl::StrFormat(
        "mean weight %.4f is %.1f deviations from 1, allowed %.0f: some of what it would do was "
        "never done, or propensities are wrong",
        o.mean_weight, deviation > 0 ? off / deviation : INFINITY, kMostDeviationsOfMeanWeight);
  if (o.largest_weight > kMostWeightOfOneDecision * sum)
    return absl::StrFormat("one decision has %.1f %% of all weight, allowed %.0f %%",
                           100 * o.largest_weight / sum, 100 * kMostWeightOfOneDecision);
  return "";
}
}  // namespace off_policy_internal

// Of decisions that CheckDecisions takes. O(n).
inline Overlap OverlapOf(absl::Span<const LoggedDecision> log) {
  Overlap o;
  const double n = static_cast<double>(log.size());
  std::vector<double> weight;
  weight.reserve(log.size());
  double sum = 0;
  double square = 0;
  double rare = 0;
  for (const LoggedDecision& d : log) {
    const double w = d.target / d.propensity;
    weight.push_back(w);
    sum += w;
    square += w * w;
    if (d.propensity < kRarePropensity) rare += w;
    o.largest_weight = std::max(o.largest_weight, w);
  }
  o.mean_weight = sum / n;
  o.never_taken = std::max(0.0, 1 - o.mean_weight);
  o.rarely_taken = rare / n;
  if (sum > 0) {
    o.effective_decisions = sum * sum / square;
    const size_t top = (log.size() + 99) / 100;
    std::nth_element(weight.begin(), weight.begin() + static_cast<std::ptrdiff_t>(top - 1),
                     weight.end(), std::greater<>());
    for (size_t i = 0; i < top; ++i) o.top_share += weight[i] / sum;
  }
  const double variance = std::max(0.0, square / n - o.mean_weight * o.mean_weight);
  o.reason = off_policy_internal::WhyUnreliable(o, std::sqrt(variance / n), sum);
  o.reliable = o.reason.empty();
  return o;
}

namespace off_policy_internal {
// Every estimator is mean(base) + sum(gain) / sum(weight).
struct Term {
  double base = 0, gain = 0, weight = 1;
};
inline Term TermOf(const LoggedDecision& d, OffPolicy how, const OffPolicyOptions& o) {
  const double w = d.target / d.propensity;
  const double residual = d.reward - d.model;
  switch (how) {
    case OffPolicy::kIps:
      return {0, w * d.reward, 1};
    case OffPolicy::kClippedIps:
      return {0, std::min(w, o.clip) * d.reward, 1};
    case OffPolicy::kSnips:
      return {0, w * d.reward, w};
    case OffPolicy::kDirect:
      return {d.model_target, 0, 1};
    case OffPolicy::kDr:
      return {d.model_target, w * residual, 1};
    case OffPolicy::kSndr:
      return {d.model_target, w * residual, w};
    case OffPolicy::kSwitchDr:
      return {d.model_target, w <= o.switch_at ? w * residual : 0, 1};
    case OffPolicy::kDrOs:
      return {d.model_target, o.shrink * w / (w * w + o.shrink) * residual, 1};
  }
  return {};
}
struct Sums {
  double base = 0, gain = 0, weight = 0, reward = 0, n = 0;
  void Add(const Term& t, double r) {
    base += t.base;
    gain += t.gain;
    weight += t.weight;
    reward += r;
    n += 1;
  }
  double ratio() const { return weight > 0 ? gain / weight : 0; }
  double value() const { return base / n + ratio(); }
  double over_logged() const { return value() - reward / n; }
};
// By the influence of each decision (delta method).
inline void SetNormal(absl::Span<const LoggedDecision> log, absl::Span<const Term> terms,
                      const Sums& s, OffPolicyEstimate& e) {
  const double mean_weight = s.weight > 0 ? s.weight / s.n : 1;
  double variance = 0;
  double of_gain = 0;
  for (size_t i = 0; i < terms.size(); ++i) {
    const Term& t = terms[i];
    const double off = t.base - s.base / s.n + (t.gain - s.ratio() * t.weight) / mean_weight;
    const double paired = off - (log[i].reward - s.reward / s.n);
    variance += off * off / (s.n - 1);
    of_gain += paired * paired / (s.n - 1);
  }
  const double z = NormalQuantile(0.975);
  e.low = e.value - z * std::sqrt(variance / s.n);
  e.high = e.value + z * std::sqrt(variance / s.n);
  e.gain.low = e.gain.value - z * std::sqrt(of_gain / s.n);
  e.gain.high = e.gain.value + z * std::sqrt(of_gain / s.n);
}
inline void SetBootstrap(absl::Span<const LoggedDecision> log, absl::Span<const Term> terms,
                         const OffPolicyOptions& o, OffPolicyEstimate& e) {
  const auto sums = [&](absl::Span<const int64_t> drawn) {
    Sums s;
    for (int64_t i : drawn) s.Add(terms[i], log[i].reward);
    return s;
  };
  const auto n = static_cast<int64_t>(log.size());
  const MeanInterval value = PairedBootstrap(
      n, o.draws, o.seed, [&](absl::Span<const int64_t> drawn) { return sums(drawn).value(); });
  const MeanInterval gain =
      PairedBootstrap(n, o.draws, o.seed,
                      [&](absl::Span<const int64_t> drawn) { return sums(drawn).over_logged(); });
  e.low = value.low;
  e.high = value.high;
  e.gain.low = gain.low;
  e.gain.high = gain.high;
}
}  // namespace off_policy_internal

// Normal intervals cost O(n), a bootstrap O(draws * n).
inline absl::StatusOr<OffPolicyEstimate> EvaluateOffPolicy(absl::Span<const LoggedDecision> log,
                                                           OffPolicy how,
                                                           const OffPolicyOptions& o = {}) {
  using off_policy_internal::Sums;
  using off_policy_internal::Term;
  SLUICE_RETURN_IF_ERROR(CheckDecisions(log));
  SLUICE_RETURN_IF_ERROR(CheckOffPolicyOptions(o));
  std::vector<Term> terms;
  terms.reserve(log.size());
  Sums sums;
  for (const LoggedDecision& d : log) {
    terms.push_back(off_policy_internal::TermOf(d, how, o));
    sums.Add(terms.back(), d.reward);
  }
  OffPolicyEstimate e;
  e.value = sums.value();
  e.gain.value = sums.over_logged();
  if (o.draws > 0) {
    off_policy_internal::SetBootstrap(log, terms, o, e);
  } else {
    off_policy_internal::SetNormal(log, terms, sums, e);
  }
  e.overlap = OverlapOf(log);
  e.reliable = e.overlap.reliable;
  return e;
}

// Which estimate to read: DR, which errs by chance alone, where the overlap is reliable; else DRos,
// whose few large weights count less, and which stays unreliable.
inline OffPolicy MainEstimator(const Overlap& o) {
  return o.reliable ? OffPolicy::kDr : OffPolicy::kDrOs;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_EXPERIMENT_OFF_POLICY_H_
