#ifndef SLUICE_ROUTERS_EXPERT_SMALL_THINKER_EARLY_GATE_H_
#define SLUICE_ROUTERS_EXPERT_SMALL_THINKER_EARLY_GATE_H_
// A gate before attention for a model that was trained with one after it: how often both name the
// same experts, and one fitted to the other (ours; SmallThinker, arXiv 2507.20984, trains its gate
// there). Double precision; offline.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "sluice/routers/common/linear_fit.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// The k experts of the highest logits; ties go to the lowest index.
inline std::vector<int32_t> BestExperts(absl::Span<const float> logits, int64_t k) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  order.resize(static_cast<size_t>(std::min(k, std::ssize(order))));
  return order;
}
// How many experts stand in both lists, each without repetitions.
inline int64_t Overlap(absl::Span<const int32_t> a, absl::Span<const int32_t> b) {
  return std::count_if(a.begin(), a.end(),
                       [&](int32_t e) { return std::find(b.begin(), b.end(), e) != b.end(); });
}

// The early gate W, without a bias, that minimises over tokens |W h - z|^2 + ridge mean|h|^2 |W|^2:
// h the state before attention, z the late gate's logits less their mean, which no softmax sees.
class EarlyGateFit {
 public:
  EarlyGateFit(int64_t dim, int64_t experts)
      : fit_(dim, experts, /*with_bias=*/false), centred_(static_cast<size_t>(experts)) {}
  // h [dim], logits [experts]. O(dim (dim + experts)).
  void Add(const float* h, const float* logits) {
    double mean = 0;
    for (size_t e = 0; e < centred_.size(); ++e) mean += static_cast<double>(logits[e]);
    mean /= static_cast<double>(centred_.size());
    for (size_t e = 0; e < centred_.size(); ++e)
      centred_[e] = static_cast<double>(logits[e]) - mean;
    fit_.Add(h, centred_.data());
  }
  // Errors as LinearFit's.
  absl::StatusOr<Linear> Solve(double ridge = 1e-3) const { return fit_.Solve(ridge); }

 private:
  LinearFit fit_;
  std::vector<double> centred_;
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_SMALL_THINKER_EARLY_GATE_H_
