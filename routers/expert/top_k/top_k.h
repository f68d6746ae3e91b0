#ifndef SLUICE_ROUTERS_EXPERT_TOP_K_TOP_K_H_
#define SLUICE_ROUTERS_EXPERT_TOP_K_TOP_K_H_
// The standard router of a mixture of experts: every token goes to its k best experts. Its four
// recipes differ in the score and in what is done to the chosen weights:
//
//   softmax, top k                         score=softmax,renormalise=none
//   softmax, top k, divide by the sum      score=softmax,renormalise=sum       (the default)
//   top k, softmax over the k logits       score=logit,renormalise=softmax     (equal to the
//   second) sigmoid + bias for ranking, top k,     score=sigmoid,renormalise=sum,scale=...
//     divide by the sum, times a factor
//
//   SCORE   score(logit); rank = score + bias
//   SELECT  the best groups of experts, then the best k; NaN never, ties to the lowest index
//           weights of the chosen renormalised; what is over an expert's capacity is dropped
#include <algorithm>
#include <cstdint>
#include <limits>

#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/gate.h"
#include "sluice/routers/common/pipeline/selector.h"

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
      v("capacity_order", capacity_order, Choices{"slot", "priority", "score"},
        "who comes first: first choices by token, first choices by score, or the highest scores");
    }
  };
  struct Plan : RoutePlanInfo {
    int64_t k = 0;
    pipeline::RowScratch row;
    size_t rank = 0, weight = 0, groups = 0, select = 0, count = 0, nans = 0, score = 0;
    size_t row_floats = 0, select_bytes = 0;  // of one worker
    size_t order = 0, items = 0, load = 0, keep = 0;
  };

  static absl::StatusOr<TopK> Create(const Config& c) {
    if (c.renormalise == pipeline::Renormalise::kSoftmax && c.score != pipeline::ScoreKind::kLogit)
      return absl::InvalidArgumentError("renormalise=softmax takes the logits: score=logit");
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

  UnitInfo DescribeUnit(const Plan& p, int64_t) const {
    return {UnitKind::kHost, 1.0 / static_cast<double>(p.shape.units), Concurrency::kUnits};
  }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    if (s.units <= 0)
      return absl::InvalidArgumentError("shape: 0 units; say how many experts there are");
    if (config_.k > s.units)
      return absl::InvalidArgumentError(absl::StrCat("k=", config_.k, " of ", s.units, " experts"));
    if (s.units % config_.groups != 0)
      return absl::InvalidArgumentError(
          absl::StrCat("groups=", config_.groups, " do not divide ", s.units, " experts"));
    Plan p;
    p.shape = s;
    p.k = config_.k == 0 ? s.units : config_.k;
    if (s.items > std::numeric_limits<int32_t>::max() / p.k)
      return absl::InvalidArgumentError(
          absl::StrCat(s.items, " items of ", p.k, " experts; allowed 2^31 - 1 entries"));

    p.max_entries = s.items * p.k;
    p.row = pipeline::RowScratch(s.units);
    const int64_t workers = std::max(1, s.workers);
    WorkspaceLayout w;
    p.row_floats = static_cast<size_t>(2 * s.units + config_.groups);
    p.rank = w.Add<float>(static_cast<int64_t>(p.row_floats) * workers);
    p.select_bytes = static_cast<size_t>((p.row.bytes() + 63) / 64 * 64);
    p.select = w.Add<std::byte>(static_cast<int64_t>(p.select_bytes) * workers);
    p.count = w.Add<int64_t>(s.items);
    p.nans = w.Add<int64_t>(s.items);
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

    ForEachPiece(p, in.items, ctx, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) ChooseExperts(p, in, i, worker, ctx, a);
    });
    Pack(p, in.items, ctx, a);

    if (config_.capacity > 0) {
      const int64_t capacity =
          pipeline::Capacity(config_.capacity, config_.capacity_counts_k, in.items, p.k,
                             p.shape.units, config_.min_capacity);
      pipeline::LimitCapacity(capacity, config_.capacity_order, Capacities(p, ctx), a);
    }
    out.num_dropped = a.num_dropped;
    out.nan_scores = a.nan_scores;
    return absl::OkStatus();
  }

 private:
  template <class Body>
  static void ForEachPiece(const Plan& p, int64_t items, const RunContext& ctx, const Body& body) {
    constexpr int64_t kItems = 64;
    if (ctx.executor != nullptr && ctx.executor->num_workers() <= p.shape.workers) {
      ctx.executor->ParallelFor(items, kItems, body);
    } else if (items > 0) {
      body(0, items, 0);
    }
  }

  // The experts of one item, into its own k slots.
  void ChooseExperts(const Plan& p, const RouteInputs& in, int64_t i, int worker,
                     const RunContext& ctx, Assignment& a) const {
    const auto units = static_cast<size_t>(p.shape.units);
    float* floats = ctx.workspace.At<float>(p.rank) + p.row_floats * static_cast<size_t>(worker);
    const pipeline::Scores scores = {{floats, units}, {floats + units, units}};
    const absl::Span<float> group_scratch = {floats + 2 * units,
                                             static_cast<size_t>(config_.groups)};
    std::byte* select =
        ctx.workspace.At<std::byte>(p.select) + p.select_bytes * static_cast<size_t>(worker);

    ctx.workspace.At<int64_t>(p.nans)[i] =
        pipeline::ScoreRow(config_.score, in.scores.row(i), in.unit_bias, scores);
    if (config_.groups > 1)
      pipeline::LimitGroups(scores.rank, config_.groups, config_.keep_groups,
                            p.k / config_.keep_groups, group_scratch);

    const int64_t at = i * p.k;
    const int64_t n = pipeline::TopK(scores.rank, p.k, p.row, select, &a.unit[at]);
    for (int64_t e = at; e < at + n; ++e) {
      a.weight[e] = scores.weight[a.unit[e]];
      if (!a.score.empty()) a.score[e] = scores.rank[a.unit[e]];
    }
    const bool lone_sigmoid = p.k == 1 && config_.score == pipeline::ScoreKind::kSigmoid;
    pipeline::NormaliseRow(lone_sigmoid ? pipeline::Renormalise::kNone : config_.renormalise,
                           static_cast<float>(config_.scale),
                           a.weight.subspan(static_cast<size_t>(at), static_cast<size_t>(n)));
    ctx.workspace.At<int64_t>(p.count)[i] = n;
  }

  // Closes the gaps of items that chose fewer than k.
  static void Pack(const Plan& p, int64_t items, const RunContext& ctx, Assignment& a) {
    const int64_t* count = ctx.workspace.At<int64_t>(p.count);
    const int64_t* nans = ctx.workspace.At<int64_t>(p.nans);
    int64_t to = 0;
    for (int64_t i = 0; i < items; ++i) {
      a.nan_scores += nans[i];
      for (int64_t e = i * p.k; e < i * p.k + count[i]; ++e, ++to) {
        if (e == to) continue;
        a.unit[to] = a.unit[e];
        a.weight[to] = a.weight[e];
        if (!a.score.empty()) a.score[to] = a.score[e];
      }
      a.row_ptr[i + 1] = to;
    }
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
