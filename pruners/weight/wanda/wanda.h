#ifndef SLUICE_PRUNERS_WEIGHT_WANDA_WANDA_H_
#define SLUICE_PRUNERS_WEIGHT_WANDA_WANDA_H_
// Wanda: a weight is worth its magnitude times the size of what it is multiplied with. Weights stay
// as they are.
//
//   SCORE   |w_ij| sqrt(sum over the tokens of x_j^2)
//   SELECT  by the target's pattern; as published every row by itself
//
// The tokens' number and their split into samples cancel: the order is the same for sums and means.
// Ties keep the lowest index; a NaN weight goes first; statistics that are no numbers are refused.
// O(n log n), of one pass over the calibration text.
#include <cmath>
#include <vector>

#include "sluice/api/weight_pruner.h"
#include "sluice/pruners/common/select.h"

SLUICE_BEGIN_NAMESPACE
namespace weight {
class Wanda {
 public:
  static constexpr PrunerTraits kTraits = {
      .name = "weight/wanda",
      .title = "A Simple and Effective Pruning Approach for Large Language Models",
      .arxiv = "2306.11695",
      .reads = kPrunerReadsSumSquares,
  };
  struct Config {
    template <class V>
    void VisitFields(V&&) {}
  };
  static absl::StatusOr<Wanda> Create(const Config&) { return Wanda(); }

  absl::Status Prune(const PruneInputs& in, const RunContext& ctx, Mask& out) const {
    const MatrixView<const float>& w = in.weights;
    std::vector<float> size(static_cast<size_t>(w.cols));
    for (size_t c = 0; c < size.size(); ++c) size[c] = std::sqrt(in.stats.sum_squares[c]);

    std::vector<float> score(static_cast<size_t>(w.rows * w.cols));
    for (int64_t r = 0; r < w.rows; ++r) {
      for (int64_t c = 0; c < w.cols; ++c)
        score[static_cast<size_t>(r * w.cols + c)] =
            std::abs(w.row(r)[c]) * size[static_cast<size_t>(c)];
    }
    pruning::SelectMask({score.data(), w.rows, w.cols, w.cols}, in.target, in.start, ctx, out);
    return absl::OkStatus();
  }
};
}  // namespace weight
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_WEIGHT_WANDA_WANDA_H_
