#ifndef SLUICE_PRUNERS_HEAD_HARD_ATTENTION_GATES_HARD_ATTENTION_GATES_H_
#define SLUICE_PRUNERS_HEAD_HARD_ATTENTION_GATES_HARD_ATTENTION_GATES_H_
// Hard-attention gates, or feature-selection gates (arXiv 2407.04400): a learned number a_c for
// every channel of a gated branch, whose output it multiplies with sigmoid(a_c).
//
//   SCORE   sigmoid(a_c), whatever the input
//   SELECT  the channels whose score is at least the threshold
//   MERGE   the branch's channels times their scores
//
// A gate that does not see the input folds: FoldGates scales the rows of the branch's last matrix
// and its bias, and gating costs nothing any more. A gate never reaches 0 by itself, "hard" is what
// the threshold adds: a row below it becomes exactly 0, and GateMask says which rows those are. The
// residual stream keeps its channels; what is saved is the branch's products.
//
// The paper learns the gates and names no threshold to prune by: that it is one number for all
// channels is inferred, and its default drops nothing. Ties with the threshold stay.
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/router.h"
#include "sluice/api/weight_pruner.h"

SLUICE_BEGIN_NAMESPACE
namespace head {
namespace hard_attention_gates {
// Of a finite or infinite a. 1 / (1 + e^-a) overflows for no a: e^-a may be infinite, the gate is 0
// then.
inline float Gate(float a) { return 1.0f / (1.0f + std::exp(-a)); }

// Rows of the branch's last matrix [gates, cols] that stay.
inline Mask GateMask(absl::Span<const float> gates, float threshold, int64_t cols) {
  Mask mask(std::ssize(gates), cols, true);
  for (int64_t r = 0; r < mask.rows(); ++r) {
    for (int64_t c = 0; c < cols && gates[static_cast<size_t>(r)] < threshold; ++c)
      mask.Set(r, c, false);
  }
  return mask;
}

// w [gates, cols] and bias [gates], or none, take their gates on: what they give is what the gated
// branch gave. Rows below the threshold become 0, whatever they hold. O(gates cols).
inline absl::Status FoldGates(absl::Span<const float> gates, float threshold, MatrixView<float> w,
                              absl::Span<float> bias) {
  if (w.rows != std::ssize(gates) || (!bias.empty() && bias.size() != gates.size()))
    return absl::InvalidArgumentError(absl::StrCat("gates: ", gates.size(), " for a matrix of ",
                                                   w.rows, " rows and a bias of ", bias.size(),
                                                   "; allowed one a row, and a bias or none"));
  for (int64_t r = 0; r < w.rows; ++r) {
    const float gate = gates[static_cast<size_t>(r)];
    const bool gone = gate < threshold;
    for (int64_t c = 0; c < w.cols; ++c) w.row(r)[c] = gone ? 0.0f : gate * w.row(r)[c];
    if (bias.empty()) continue;
    float& b = bias[static_cast<size_t>(r)];
    b = gone ? 0.0f : gate * b;
  }
  return absl::OkStatus();
}
}  // namespace hard_attention_gates

// One gated branch of a layer. Units: its channels; every item gets those that stay, each weighted
// by its gate. Frozen (pruners/common/freeze.h), the channels with the greatest gates stay. A gate
// that is no number is refused where it is read. O(items channels).
class HardAttentionGates {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "head/hard_attention_gates",
      .title = "Hard-Attention Gates with Gradient Routing for Endoscopic Image Computing",
      .arxiv = "2407.04400",
      .domain = Domain::kHead,
      .combine = Combine::kWeightedSum,
      .decides = Decides::kPrompt,
      .learned = true,
      .full_budget = "threshold=0",
      .small_budget = "threshold=0.5",
  };
  enum class Branch : uint8_t { kAttention, kFfn };
  struct Config {
    int64_t layer = 0;
    Branch branch = Branch::kFfn;
    double threshold = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "from 0");
      v("branch", branch, Choices{"attention", "ffn"}, "whose output is gated");
      v("threshold", threshold, Range<double>{0, 1}, "least gate of a channel that stays");
    }
  };
  struct Plan : RoutePlanInfo {};

  // Reads blk.<layer>.gates.<branch> of the key sluice.gates.channels.
  static absl::StatusOr<HardAttentionGates> Create(const Config& c, const WeightSource& w) {
    SLUICE_ASSIGN_OR_RETURN(const int64_t channels, w.Int("sluice.gates.channels"));
    constexpr int64_t kMost = 1 << 24;
    if (channels < 1 || channels > kMost)
      return absl::InvalidArgumentError(
          absl::StrCat("sluice.gates.channels ", channels, "; allowed 1 to ", kMost));
    const uint64_t shape[] = {static_cast<uint64_t>(channels)};
    HardAttentionGates r;
    SLUICE_ASSIGN_OR_RETURN(r.gates_, w.ReadF32(Name(c), shape));
    for (size_t i = 0; i < r.gates_.size(); ++i) {
      if (std::isnan(r.gates_[i]))
        return absl::InvalidArgumentError(
            absl::StrCat(Name(c), ": channel ", i, " is nan; allowed are numbers"));
      r.gates_[i] = hard_attention_gates::Gate(r.gates_[i]);
    }
    r.threshold_ = static_cast<float>(c.threshold);
    return r;
  }
  static WeightKeys Weights(const Config& c, const RouteShape& s) {
    const int64_t channels = s.units > 0 ? s.units : 12;
    WeightKeys w;
    w.ints = {{"sluice.gates.channels", channels}};
    w.tensors.push_back({Name(c), {channels}});
    return w;
  }
  absl::Span<const float> gates() const { return gates_; }
  float threshold() const { return threshold_; }
  UnitInfo DescribeUnit(const Plan&, int64_t) const {
    return {UnitKind::kHost, 1.0 / static_cast<double>(gates_.size()), Concurrency::kRows};
  }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    const int64_t channels = std::ssize(gates_);
    if (s.units != 0 && s.units != channels)
      return absl::InvalidArgumentError(
          absl::StrCat("shape: ", s.units, " units; wanted ", channels, " (or 0)"));
    Plan p;
    p.shape = s;
    p.shape.units = channels;
    p.max_entries = s.items * channels;
    return p;
  }
  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext&, Assignment& out) const {
    out.items = in.items;
    out.units = p.shape.units;
    out.num_dropped = 0;
    out.nan_scores = 0;
    out.row_ptr[0] = 0;
    size_t e = 0;
    for (int64_t i = 0; i < in.items; ++i) {
      for (size_t u = 0; u < gates_.size(); ++u) {
        if (gates_[u] < threshold_) continue;
        out.unit[e] = static_cast<int32_t>(u);
        out.weight[e] = gates_[u];
        if (!out.score.empty()) out.score[e] = gates_[u];
        ++e;
      }
      out.row_ptr[static_cast<size_t>(i) + 1] = static_cast<int64_t>(e);
    }
    return absl::OkStatus();
  }

 private:
  static std::string Name(const Config& c) {
    const char* branch = c.branch == Branch::kAttention ? "attention" : "ffn";
    return absl::StrCat("blk.", c.layer, ".gates.", branch);
  }

  std::vector<float> gates_;
  float threshold_ = 0;
};
}  // namespace head
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_HEAD_HARD_ATTENTION_GATES_HARD_ATTENTION_GATES_H_
