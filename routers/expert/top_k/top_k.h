#ifndef SLUICE_ROUTERS_EXPERT_TOP_K_TOP_K_H_
#define SLUICE_ROUTERS_EXPERT_TOP_K_TOP_K_H_
// The standard router of a mixture of experts: every token goes to its k best experts. Its four
// recipes differ in the score and in what is done to the chosen weights:
//
//   softmax, top k                         score=softmax,renormalise=none
//   softmax, top k, divide by the sum      score=softmax,renormalise=sum       (the default)
//   top k, softmax over the k logits       score=logit,renormalise=softmax     (the same weights)
//   sigmoid + bias for ranking, top k,     score=sigmoid,renormalise=sum,scale=...
//     divide by the sum, times a factor
//
// A square root of a softplus (score=sqrt_softplus) takes the sigmoid's place in some models.
//
//   SCORE   score(logit); rank = score + bias
//   SELECT  the best groups of experts, then the best k; NaN never, ties to the lowest index
//           weights of the chosen renormalised; what is over an expert's capacity is dropped
#include <algorithm>
#include <cstdint>

#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/gate.h"
#include "sluice/routers/common/pipeline/selector.h"
#include "sluice/routers/expert/common/k_experts.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// Items are tokens; scores [items, units] the logits of the model's own gate, unit_bias [units]
// what is added for ranking only; units are the experts, all the host's. O(items units).
class TopK {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "expert/top_k",
      .title = "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
      .arxiv = "1701.06538",
      .domain = Domain::kExpert,
      .combine = Combine::kWeightedSum,
      .decides = Decides::kToken,
      .reads = kReadsScores,
      .may_read = kReadsUnitBias,
      .full_budget = "k=0",
      .small_budget = "k=1",
  };
  // `causal` and `items_alone` hold without a capacity: with one, tokens compete.

  struct Config {
    int64_t k = 2;
    pipeline::ScoreKind score = pipeline::ScoreKind::kSoftmax;
    pipeline::Renormalise renormalise = pipeline::Renormalise::kSum;
    double scale = 1;
    int64_t groups = 1;
    int64_t keep_groups = 1;
    double capacity = 0;
    bool capacity_counts_k = true;
    int64_t min_capacity = 0;
    pipeline::CapacityOrder capacity_order = pipeline::CapacityOrder::kSlot;

    template <class V>
    void VisitFields(V&& v) {
      v("k", k, Range<int64_t>{0, 65536}, "experts a token; 0: all of them");
      v("score", score, Choices{"softmax", "sigmoid", "sqrt_softplus", "logit"},
        "what a logit becomes");
      v("renormalise", renormalise, Choices{"none", "sum", "softmax"},
        "of the chosen weights; softmax takes score=logit; sum leaves a sigmoid at k=1 as it is");
      v("scale", scale, Range<double>{0, 1e6}, "factor of the weights");
      v("groups", groups, Range<int64_t>{1, 65536}, "groups of equal size that experts stand in");
      v("keep_groups", keep_groups, Range<int64_t>{1, 65536},
        "groups that a token may choose from: those of the greatest sum of k / keep_groups scores");
      v("capacity", capacity, Range<double>{0, 1e6},
        "items an expert takes, as a multiple of the even share; 0: any number");
      v("capacity_counts_k", capacity_counts_k, Range<bool>{false, true},
        "the even share is of all choices, rounded up; false: of the tokens, rounded");
      v("min_capacity", min_capacity, Range<int64_t>{0, 1 << 30}, "least capacity of an expert");
      v("capacity_order", capacity_order, Choices{"slot", "priority", "score", "position"},
        "who comes first: first choices by token, first choices by score, the highest scores, or "
        "the earlier tokens");
    }
  };
  struct Plan : RoutePlanInfo {
    KExperts choose;
    size_t groups = 0;  // [workers, config.groups]
    size_t score = 0, order = 0, items = 0, load = 0, keep = 0;
  };

  static absl::StatusOr<TopK> Create(const Config& c) {
    if (c.renormalise == pipeline::Renormalise::kSoftmax && c.score != pipeline::ScoreKind::kLogit)
      return absl::InvalidArgumentError("renormalise=softmax takes the logits: score=logit");
    if (c.renormalise == pipeline::Renormalise::kSum && c.score == pipeline::ScoreKind::kLogit)
      return absl::InvalidArgumentError(
          "renormalise=sum of logits divides by what may be 0: softmax or none");
    if (c.keep_groups > c.groups)
      return absl::InvalidArgumentError(
          absl::StrCat("keep_groups=", c.keep_groups, " of groups=", c.groups));
    if (c.groups > 1 && (c.k == 0 || c.k % c.keep_groups != 0))
      return absl::InvalidArgumentError(
          absl::StrCat("groups are ranked by k / keep_groups scores: k=", c.k,
                       " is no positive multiple of ", "keep_groups=", c.keep_groups));
    if (c.capacity == 0 && c.min_capacity > 0)
      return absl::InvalidArgumentError(
          absl::StrCat("min_capacity=", c.min_capacity, " without a capacity would be ignored"));
    TopK r;
    r.config_ = c;
    return r;
  }

  UnitInfo DescribeUnit(const Plan& p, int64_t) const { return DescribeExpert(p); }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    Plan p;
    p.shape = s;
    WorkspaceLayout w;
    SLUICE_ASSIGN_OR_RETURN(p.choose, KExperts::Reserve(s, config_.k, w));
    if (s.units % config_.groups != 0)
      return absl::InvalidArgumentError(
          absl::StrCat("groups=", config_.groups, " do not divide ", s.units, " experts"));

    p.max_entries = p.choose.max_entries();
    p.groups = w.Add<float>(config_.groups * std::max(1, s.workers));
    if (config_.capacity > 0) {
      p.max_dropped = p.max_entries;
      p.score = w.Add<float>(p.max_entries);
      p.order = w.Add<int32_t>(p.max_entries);
      p.items = w.Add<int32_t>(s.items);
      p.load = w.Add<int64_t>(s.units);
      p.keep = w.Add<uint8_t>(p.max_entries);
    }
    p.workspace_bytes = w.bytes();
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    Assignment a = out;  // with scores, which capacities are decided by
    if (a.score.empty() && config_.capacity > 0)
      a.score = {ctx.workspace.At<float>(p.score), static_cast<size_t>(p.max_entries)};

    const bool lone_sigmoid = p.choose.k() == 1 && config_.score == pipeline::ScoreKind::kSigmoid;
    const auto renormalise = lone_sigmoid ? pipeline::Renormalise::kNone : config_.renormalise;
    p.choose.Run(
        in.items, ctx,
        [&](int64_t i, int worker, const pipeline::Scores& scores) {
          return ScoreToken(p, in, i, worker, ctx, scores);
        },
        [&](absl::Span<float> weight) {
          pipeline::NormaliseRow(renormalise, static_cast<float>(config_.scale), weight);
        },
        a);

    if (config_.capacity > 0) {
      const int64_t capacity =
          pipeline::Capacity(config_.capacity, config_.capacity_counts_k, in.items, p.choose.k(),
                             p.shape.units, config_.min_capacity);
      pipeline::LimitCapacity(capacity, config_.capacity_order, Capacities(p, ctx), a);
    }
    out.num_dropped = a.num_dropped;
    out.nan_scores = a.nan_scores;
    return absl::OkStatus();
  }

 private:
  int64_t ScoreToken(const Plan& p, const RouteInputs& in, int64_t i, int worker,
                     const RunContext& ctx, const pipeline::Scores& scores) const {
    const int64_t nans = pipeline::ScoreRow(config_.score, in.scores.row(i), in.unit_bias, scores);
    if (config_.groups > 1) {
      float* scratch = ctx.workspace.At<float>(p.groups) + config_.groups * worker;
      pipeline::LimitGroups(scores.rank, config_.groups, config_.keep_groups,
                            p.choose.k() / config_.keep_groups,
                            {scratch, static_cast<size_t>(config_.groups)});
    }
    return nans;
  }

  static pipeline::CapacityScratch Capacities(const Plan& p, const RunContext& ctx) {
    const auto entries = static_cast<size_t>(p.max_entries);
    const Workspace& w = ctx.workspace;
    return {
        .order = {w.At<int32_t>(p.order), entries},
        .items = {w.At<int32_t>(p.items), static_cast<size_t>(p.shape.items)},
        .count = {w.At<int64_t>(p.load), static_cast<size_t>(p.shape.units)},
        .keep = {w.At<uint8_t>(p.keep), entries},
    };
  }

  Config config_;
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_TOP_K_TOP_K_H_
