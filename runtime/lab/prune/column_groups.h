#ifndef SLUICE_RUNTIME_LAB_PRUNE_COLUMN_GROUPS_H_
#define SLUICE_RUNTIME_LAB_PRUNE_COLUMN_GROUPS_H_
// A matrix whose columns are pruned in groups, each as if it were a matrix of its own: the query
// heads of every KV head among themselves.
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/weight_pruner.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// A target is of a group: a count of blocks stays in each. Weights [rows, groups * wide]. Reads no
// start mask. InvalidArgument where the columns are no whole groups or the groups none; else what
// `inner` says of a group.
class ColumnGroups final : public WeightPruner {
 public:
  ColumnGroups(std::unique_ptr<const WeightPruner> inner, int64_t groups)
      : inner_(std::move(inner)), groups_(groups) {}

  const PrunerTraits& traits() const override { return inner_->traits(); }

  absl::StatusOr<Mask> Prune(const PruneInputs& in, const RunContext& ctx) const override {
    const MatrixView<const float>& w = in.weights;
    if (groups_ < 1 || w.cols % groups_ != 0)
      return absl::InvalidArgumentError(
          absl::StrCat(w.cols, " columns in ", groups_, " groups; allowed: groups of equal width"));
    const int64_t wide = w.cols / groups_;
    Mask out(w.rows, w.cols, false);
    for (int64_t first = 0; first < w.cols; first += wide) {
      SLUICE_ASSIGN_OR_RETURN(const Mask mask, inner_->Prune(Columns(in, first, wide), ctx));
      for (int64_t r = 0; r < w.rows; ++r) {
        for (int64_t c = 0; c < wide; ++c) out.Set(r, first + c, mask.kept(r, c));
      }
    }
    return out;
  }

 private:
  static PruneInputs Columns(const PruneInputs& in, int64_t first, int64_t wide) {
    const auto part = [&](absl::Span<const float> x) {
      return x.empty() ? x : x.subspan(static_cast<size_t>(first), static_cast<size_t>(wide));
    };
    PruneInputs of = in;
    of.weights.data += first;
    of.weights.cols = wide;
    of.stats.mean = part(in.stats.mean);
    of.stats.sum_squares = part(in.stats.sum_squares);
    of.stats.variance = part(in.stats.variance);
    if (!in.stats.gram.empty())
      of.stats.gram = {in.stats.gram.row(first) + first, wide, wide, in.stats.gram.row_stride};
    of.start = nullptr;
    return of;
  }

  std::unique_ptr<const WeightPruner> inner_;
  int64_t groups_;
};
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_COLUMN_GROUPS_H_
