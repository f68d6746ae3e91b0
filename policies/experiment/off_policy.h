#ifndef SLUICE_POLICIES_EXPERIMENT_OFF_POLICY_H_
#define SLUICE_POLICIES_EXPERIMENT_OFF_POLICY_H_
// What a policy would have earned, from decisions that another one made and logged with their
// propensities: IPS, SNIPS (Swaminathan & Joachims 2015), DR (Dudik et al., arXiv 1103.4601),
// SWITCH-DR (Wang et al., arXiv 1612.01205).
#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
struct LoggedDecision {
  double reward = 0;
  double propensity = 0;    // logging policy's probability of what it did, in (0, 1]
  double target = 0;        // evaluated policy's probability of the same
  double model = 0;         // predicted reward of what was done
  double model_target = 0;  // predicted reward of the evaluated policy: sum over actions of its
                            // probability * prediction
};
enum class OffPolicy : uint8_t { kIps, kSnips, kDirect, kDr, kSwitchDr };

struct OffPolicyEstimate {
  double value = 0, low = 0, high = 0;  // 95 %, normal
  double effective_samples = 0;         // (sum w)^2 / sum w^2
  double largest_weight = 0;
  double mean_weight =
      0;  // 1 in expectation when the logging policy could do all that the target does
  bool reliable =
      false;  // at least 100 effective samples and mean weight within 4 of its deviations of 1
};
// `switch_at`: weights above it are left to the model (SWITCH-DR). O(n).
inline absl::StatusOr<OffPolicyEstimate> EvaluateOffPolicy(absl::Span<const LoggedDecision> log,
                                                           OffPolicy how, double switch_at = 20) {
  if (log.size() < 2)
    return absl::InvalidArgumentError(
        absl::StrCat("off-policy: ", log.size(), " decisions, wanted 2 or more"));
  OffPolicyEstimate e;
  const double n = static_cast<double>(log.size());
  double sum = 0, square = 0;
  for (size_t i = 0; i < log.size(); ++i) {
    const LoggedDecision& d = log[i];
    if (!(d.propensity > 0 && d.propensity <= 1 + 1e-9)) {
      return absl::OutOfRangeError(absl::StrCat("off-policy: decision ", i, " has propensity ",
                                                d.propensity,
                                                "; without the true one nothing can be said"));
    }
    if (!(d.target >= 0 && d.target <= 1 + 1e-9) || !std::isfinite(d.reward)) {
      return absl::OutOfRangeError(absl::StrCat("off-policy: decision ", i, " has target ",
                                                d.target, " and reward ", d.reward));
    }
    const double w = d.target / d.propensity;
    sum += w;
    square += w * w;
    e.largest_weight = std::max(e.largest_weight, w);
  }
  e.effective_samples = square > 0 ? sum * sum / square : 0;
  e.mean_weight = sum / n;
  const double weight_sd = std::sqrt(std::max(0.0, square / n - e.mean_weight * e.mean_weight) / n);
  e.reliable = e.effective_samples >= 100 && std::abs(e.mean_weight - 1) <= 4 * weight_sd + 1e-9;

  std::vector<double> term(log.size());
  for (size_t i = 0; i < log.size(); ++i) {
    const LoggedDecision& d = log[i];
    const double w = d.target / d.propensity;
    switch (how) {
      case OffPolicy::kIps:
        term[i] = w * d.reward;
        break;
      case OffPolicy::kSnips:
        term[i] = e.mean_weight > 0 ? w * d.reward / e.mean_weight : 0;
        break;
      case OffPolicy::kDirect:
        term[i] = d.model_target;
        break;
      case OffPolicy::kDr:
        term[i] = d.model_target + w * (d.reward - d.model);
        break;
      case OffPolicy::kSwitchDr:
        term[i] = d.model_target + (w <= switch_at ? w * (d.reward - d.model) : 0);
        break;
    }
    e.value += term[i] / n;
  }
  double variance = 0;
  for (size_t i = 0; i < log.size(); ++i) {
    double off = term[i] - e.value;
    if (how == OffPolicy::kSnips && e.mean_weight > 0) {  // delta method: the ratio's influence
      off = log[i].target / log[i].propensity / e.mean_weight * (log[i].reward - e.value);
    }
    variance += off * off / (n - 1);
  }
  const double half = 1.959964 * std::sqrt(variance / n);
  e.low = e.value - half;
  e.high = e.value + half;
  return e;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_EXPERIMENT_OFF_POLICY_H_
