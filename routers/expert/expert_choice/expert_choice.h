#ifndef SLUICE_ROUTERS_EXPERT_EXPERT_CHOICE_EXPERT_CHOICE_H_
#define SLUICE_ROUTERS_EXPERT_EXPERT_CHOICE_EXPERT_CHOICE_H_
// Experts choose their tokens (arXiv 2202.09368): every expert is used alike, and a token gets as
// many experts as want it, none included.
//
//   SCORE   p = softmax of a token's logits over the experts
//   SELECT  by=capacity   each expert its C best tokens, C = round(capacity tokens / experts)
//           by=threshold  each expert every token of at least its threshold
//           weights p as they are
//
// A choice among all tokens depends on later ones: by=capacity is for encoders and says so with
// non_causal_ok=true. Thresholds (ours, not the paper's; the default) ask every token alone: those
// that calibrate.h finds on text of the same kind give each expert about its C tokens, and the
// share 1 / experts stands for what was not calibrated. NaN is never chosen; ties go to the earlier
// token.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/gate.h"
#include "sluice/routers/common/pipeline/selector.h"
#include "sluice/routers/expert/common/k_experts.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// Items are tokens; scores [items, units] the logits of the model's own gate; units are the
// experts, all the host's. By threshold O(items units); by capacity the same, from one thread but
// for the scores.
class ExpertChoice {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "expert/expert_choice",
      .title = "Mixture-of-Experts with Expert Choice Routing",
      .arxiv = "2202.09368",
      .domain = Domain::kExpert,
      .combine = Combine::kWeightedSum,
      .decides = Decides::kToken,
      .reads = kReadsScores,
      .full_budget = "thresholds=0",
      .small_budget = "thresholds=0.5",
  };
  // `causal` and `items_alone` hold by threshold.

  enum class By : uint8_t { kThreshold, kCapacity };
  struct Config {
    By by = By::kThreshold;
    std::vector<double> thresholds;
    double capacity = 1;
    int64_t min_capacity = 4;
    bool non_causal_ok = false;

    template <class V>
    void VisitFields(V&& v) {
      v("by", by, Choices{"threshold", "capacity"},
        "an expert takes all above its threshold, or its best so many of all tokens");
      v("thresholds", thresholds, Range<double>{0, 1},
        "least probability, one for all experts or one each; empty: 1 / experts");
      v("capacity", capacity, Range<double>{0, 1e6},
        "tokens an expert takes, as a multiple of tokens / experts");
      v("min_capacity", min_capacity, Range<int64_t>{0, 1 << 30}, "least capacity of an expert");
      v("non_causal_ok", non_causal_ok, Range<bool>{false, true},
        "later tokens may decide for earlier ones, as by=capacity has them do");
    }
  };
  struct Plan : RoutePlanInfo {
    KExperts choose;                                // by threshold
    size_t p = 0, column = 0, chosen = 0, row = 0;  // by capacity
  };

  static absl::StatusOr<ExpertChoice> Create(const Config& c) {
    if (c.by == By::kCapacity && !c.non_causal_ok)
      return absl::InvalidArgumentError(
          "by=capacity lets later tokens decide for earlier ones: say non_causal_ok=true where "
          "that "
          "is allowed (an encoder), or take by=threshold");
    if (c.by == By::kCapacity && !c.thresholds.empty())
      return absl::InvalidArgumentError("thresholds with by=capacity would be ignored");
    const Config defaults;
    if (c.by == By::kThreshold &&
        (c.capacity != defaults.capacity || c.min_capacity != defaults.min_capacity))
      return absl::InvalidArgumentError(absl::StrCat("capacity=", c.capacity,
                                                     ", min_capacity=", c.min_capacity,
                                                     " with by=threshold would be ignored"));
    ExpertChoice r;
    r.config_ = c;
    return r;
  }

  UnitInfo DescribeUnit(const Plan& p, int64_t) const { return DescribeExpert(p); }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    Plan p;
    p.shape = s;
    WorkspaceLayout w;
    if (config_.by == By::kThreshold) {
      const auto given = static_cast<int64_t>(config_.thresholds.size());
      SLUICE_ASSIGN_OR_RETURN(p.choose, KExperts::Reserve(s, 0, w));
      if (given > 1 && given != s.units)
        return absl::InvalidArgumentError(
            absl::StrCat(given, " thresholds for ", s.units, " experts; give none, one or all"));
      p.max_entries = p.choose.max_entries();
    } else {
      SLUICE_RETURN_IF_ERROR(CheckExperts(s, 0));
      p.max_entries = s.units * Capacity(s.items, s.units);
      p.p = w.Add<float>(s.items * s.units);
      p.column = w.Add<float>(s.items);
      p.chosen = w.Add<int32_t>(p.max_entries);
      p.row = w.Add<std::byte>(pipeline::RowScratch(s.items).bytes());
    }
    p.workspace_bytes = w.bytes();
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    if (config_.by == By::kCapacity) {
      ChooseTokens(p, in, ctx, out);
      return absl::OkStatus();
    }
    p.choose.Run(
        in.items, ctx,
        [&](int64_t i, int, const pipeline::Scores& scores) {
          const int64_t nans = Softmax(in, i, scores);
          for (size_t u = 0; u < scores.rank.size(); ++u) {
            if (scores.rank[u] < Threshold(u, scores.rank.size()))
              scores.rank[u] = pipeline::kNever;
          }
          return nans;
        },
        [](absl::Span<float>) {}, out);
    return absl::OkStatus();
  }

 private:
  static int64_t Softmax(const RouteInputs& in, int64_t i, const pipeline::Scores& scores) {
    return pipeline::ScoreRow(pipeline::ScoreKind::kSoftmax, in.scores.row(i), {}, scores);
  }
  float Threshold(size_t unit, size_t units) const {
    const std::vector<double>& t = config_.thresholds;
    if (t.empty()) return 1.0f / static_cast<float>(units);
    return static_cast<float>(t.size() == 1 ? t[0] : t[unit]);
  }
  int64_t Capacity(int64_t items, int64_t units) const {
    const int64_t c =
        pipeline::Capacity(config_.capacity, false, items, 1, units, config_.min_capacity);
    return std::min(items, c);
  }

  void ChooseTokens(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                    Assignment& out) const {
    const Workspace& w = ctx.workspace;
    const int64_t units = p.shape.units;
    float* probability = w.At<float>(p.p);
    ForEachPiece(in.items, p.shape.workers, ctx, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        // No bias: what ranks is what weighs.
        const absl::Span<float> row = {probability + i * units, static_cast<size_t>(units)};
        Softmax(in, i, {row, row});
      }
    });

    const MatrixView<const float> all = {probability, in.items, units, units};
    pipeline::ExpertChoice(all, all, Capacity(in.items, units),
                           {w.At<float>(p.column), static_cast<size_t>(p.shape.items)},
                           {w.At<int32_t>(p.chosen), static_cast<size_t>(p.max_entries)},
                           pipeline::RowScratch(p.shape.items), w.At<std::byte>(p.row), out);
  }

  Config config_;
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_EXPERT_CHOICE_EXPERT_CHOICE_H_
