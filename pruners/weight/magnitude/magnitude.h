#ifndef SLUICE_PRUNERS_WEIGHT_MAGNITUDE_MAGNITUDE_H_
#define SLUICE_PRUNERS_WEIGHT_MAGNITUDE_MAGNITUDE_H_
// Magnitude pruning: the smallest weights go. Needs no data; what every other pruner must beat.
//
//   SCORE   |w|, or w^2: the same order of single weights, another of blocks
//   SELECT  by the target's pattern
//
// O(n log n).
#include <cmath>
#include <vector>

#include "sluice/api/weight_pruner.h"
#include "sluice/pruners/common/select.h"

SLUICE_BEGIN_NAMESPACE
namespace weight {
class Magnitude {
 public:
  static constexpr PrunerTraits kTraits = {
      .name = "weight/magnitude",
      .title = "Learning both Weights and Connections for Efficient Neural Networks",
      .arxiv = "1506.02626",
  };
  enum class Norm : uint8_t { kAbsolute, kSquare };
  struct Config {
    Norm norm = Norm::kAbsolute;
    template <class V>
    void VisitFields(V&& v) {
      v("norm", norm, Choices{"absolute", "square"}, "of a weight; blocks sum it");
    }
  };

  static absl::StatusOr<Magnitude> Create(const Config& c) {
    Magnitude p;
    p.config_ = c;
    return p;
  }

  absl::Status Prune(const PruneInputs& in, const RunContext& ctx, Mask& out) const {
    const MatrixView<const float>& w = in.weights;
    std::vector<float> score(static_cast<size_t>(w.rows * w.cols));
    for (int64_t r = 0; r < w.rows; ++r) {
      for (int64_t c = 0; c < w.cols; ++c) {
        const float x = w.row(r)[c];
        score[static_cast<size_t>(r * w.cols + c)] =
            config_.norm == Norm::kSquare ? x * x : std::abs(x);
      }
    }
    pruning::SelectMask({score.data(), w.rows, w.cols, w.cols}, in.target, in.start, ctx, out);
    return absl::OkStatus();
  }

 private:
  Config config_;
};
}  // namespace weight
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_WEIGHT_MAGNITUDE_MAGNITUDE_H_
