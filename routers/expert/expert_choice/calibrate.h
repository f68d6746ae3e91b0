#ifndef SLUICE_ROUTERS_EXPERT_EXPERT_CHOICE_CALIBRATE_H_
#define SLUICE_ROUTERS_EXPERT_EXPERT_CHOICE_CALIBRATE_H_
// Thresholds for experts that choose their tokens one at a time. Ours: the paper has none.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/tensor_view.h"
#include "sluice/routers/common/pipeline/gate.h"
#include "sluice/routers/common/pipeline/selector.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// logits [tokens, experts] of text like that which will be routed -> for every expert the
// probability of the last token that it would take of them by capacity: on these tokens thresholds
// choose what the capacity does, ties aside. Tokens with a NaN for an expert do not count for it.
// Errors: no tokens, a capacity of none, an expert without numbers. O(tokens experts).
inline absl::StatusOr<std::vector<double>> CalibrateThresholds(MatrixView<const float> logits,
                                                               double capacity) {
  const int64_t take = logits.cols <= 0
                           ? 0
                           : std::min(logits.rows, pipeline::Capacity(capacity, false, logits.rows,
                                                                      1, logits.cols, 0));
  if (take <= 0)
    return absl::InvalidArgumentError(
        absl::StrCat("capacity=", capacity, " of ", logits.rows, " tokens and ", logits.cols,
                     " experts leaves an expert no token; give more tokens or capacity"));

  const auto experts = static_cast<size_t>(logits.cols);
  std::vector<std::vector<float>> of(experts);
  std::vector<float> rank(experts);
  std::vector<float> weight(experts);
  for (int64_t i = 0; i < logits.rows; ++i) {
    pipeline::ScoreRow(pipeline::ScoreKind::kSoftmax, logits.row(i), {},
                       {absl::MakeSpan(rank), absl::MakeSpan(weight)});
    for (size_t u = 0; u < experts; ++u) {
      if (!std::isnan(rank[u])) of[u].push_back(rank[u]);
    }
  }

  std::vector<double> thresholds;
  for (std::vector<float>& p : of) {
    if (p.empty())
      return absl::InvalidArgumentError(
          absl::StrCat("expert ", thresholds.size(), " has no logit that is a number"));
    const int64_t last = std::min(take, std::ssize(p)) - 1;
    std::nth_element(p.begin(), p.begin() + last, p.end(), std::greater<>());
    thresholds.push_back(static_cast<double>(p[static_cast<size_t>(last)]));
  }
  return thresholds;
}
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_EXPERT_CHOICE_CALIBRATE_H_
