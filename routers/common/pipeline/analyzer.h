#ifndef SLUICE_ROUTERS_COMMON_PIPELINE_ANALYZER_H_
#define SLUICE_ROUTERS_COMMON_PIPELINE_ANALYZER_H_
// Analyzer: how items spread over units. Looks at assignments and scores, changes nothing.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "sluice/api/assignment.h"
#include "sluice/api/tensor_view.h"

SLUICE_BEGIN_NAMESPACE
namespace pipeline {
// What a share of the choices is of: the balance of a gate that is even is 1 by the first rule and
// the number of choices an item by the second. Both are in use.
enum class BalanceOf : uint8_t { kChoices, kItems };

class LoadAnalyzer {
 public:
  explicit LoadAnalyzer(int64_t units)
      : count_(static_cast<size_t>(units)), probability_(static_cast<size_t>(units)) {}

  // O(entries).
  void See(const Assignment& a) {
    items_ += a.items;
    dropped_ += a.num_dropped;
    nans_ += a.nan_scores;
    for (int64_t e = 0; e < a.entries(); ++e) ++count_[static_cast<size_t>(a.unit[e])];
    entries_ += a.entries();
  }
  // The gate's probabilities [items, units] of the same items, for Balance. O(items units).
  void SeeProbabilities(MatrixView<const float> p) {
    for (int64_t i = 0; i < p.rows; ++i) {
      for (int64_t u = 0; u < p.cols; ++u)
        probability_[static_cast<size_t>(u)] += static_cast<double>(p.row(i)[u]);
    }
    seen_ += p.rows;
  }

  const std::vector<int64_t>& counts() const { return count_; }
  int64_t items() const { return items_; }
  int64_t nan_scores() const { return nans_; }

  // Entropy of the load in nats: log(units) when it is even, 0 when one unit has all.
  double Entropy() const {
    double h = 0;
    for (int64_t c : count_) {
      if (c == 0) continue;
      const double share = static_cast<double>(c) / static_cast<double>(entries_);
      h -= share * std::log(share);
    }
    return h;
  }
  // Standard deviation of the load over its mean: 0 when it is even.
  double LoadVariation() const {
    const double n = static_cast<double>(count_.size());
    const double mean = static_cast<double>(entries_) / n;
    double square = 0;
    for (int64_t c : count_) {
      const double off = static_cast<double>(c) - mean;
      square += off * off / n;
    }
    return mean > 0 ? std::sqrt(square) / mean : 0;
  }
  // Switch balance units * sum_u f_u p_u, f_u the share of the choices (or choices an item) that u
  // was given and p_u the mean probability (arXiv 2101.03961).
  double Balance(BalanceOf of) const {
    double sum = 0;
    for (size_t u = 0; u < count_.size(); ++u)
      sum += static_cast<double>(count_[u]) * probability_[u];
    const double shares = static_cast<double>(of == BalanceOf::kChoices ? entries_ : items_);
    const double over = shares * static_cast<double>(seen_);
    return over > 0 ? static_cast<double>(count_.size()) * sum / over : 0;
  }
  // Pairs dropped of the pairs asked for.
  double DropRate() const {
    const int64_t asked = entries_ + dropped_;
    return asked > 0 ? static_cast<double>(dropped_) / static_cast<double>(asked) : 0;
  }

 private:
  std::vector<int64_t> count_;
  std::vector<double> probability_;
  int64_t items_ = 0, entries_ = 0, dropped_ = 0, nans_ = 0, seen_ = 0;
};

// Mean over the rows of logsumexp(logits)^2: what keeps logits small (arXiv 2202.08906). 0 of no
// rows; NaN where a logit is. O(items units).
inline double ZLoss(MatrixView<const float> logits) {
  double sum = 0;
  for (int64_t i = 0; i < logits.rows; ++i) {
    double most = -INFINITY;
    for (int64_t u = 0; u < logits.cols; ++u)
      most = std::max(most, static_cast<double>(logits.row(i)[u]));
    double exps = 0;
    for (int64_t u = 0; u < logits.cols; ++u)
      exps += std::exp(static_cast<double>(logits.row(i)[u]) - most);
    const double lse = most + std::log(exps);
    sum += lse * lse;
  }
  return logits.rows > 0 ? sum / static_cast<double>(logits.rows) : 0;
}

// Unbiased variance over the squared mean (+ 1e-10): 0 when the values are equal, and of fewer than
// two. O(n).
inline double SquaredVariation(absl::Span<const double> x) {
  if (x.size() < 2) return 0;
  const auto n = static_cast<double>(x.size());
  double mean = 0;
  for (double v : x) mean += v / n;
  double square = 0;
  for (double v : x) square += (v - mean) * (v - mean) / (n - 1);
  return square / (mean * mean + 1e-10);
}
}  // namespace pipeline
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_COMMON_PIPELINE_ANALYZER_H_
