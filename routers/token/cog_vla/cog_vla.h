#ifndef SLUICE_ROUTERS_TOKEN_COG_VLA_COG_VLA_H_
#define SLUICE_ROUTERS_TOKEN_COG_VLA_COG_VLA_H_
// Visual tokens that a layer of the language model leaves out: the LLM-side pruning routing (LFP)
// of CogVLA (arXiv 2508.21046). What it does beside the vision encoders is encoder_mixer.h.
//
//   SCORE   s = softmax(W rmsnorm(h))[1]; ranked by the difference of the two logits, which orders
//           alike and does not saturate
//   SELECT  all tokens that are not visual, and the best floor(m rho) of the m visual ones; NaN
//           never, ties to the earlier token; a layer of rho > max runs all
//   MERGE   what runs is replaced by its result, what does not passes through unchanged and may be
//           chosen again by a later layer
//
// rho of layer l of L: max(cos(pi l / (L - 1)) / 2 + average, min), or one number for all layers.
// weight=trained gives s as a token's weight, by which a model that was trained so multiplies its
// feed-forward output, forced tokens included, and numbers the kept tokens anew in every layer:
// another model is damaged by both. FiLM on the router's input is off in the published
// configuration, and refused here.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include "sluice/api/one_unit.h"
#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/selector.h"
#include "sluice/routers/expert/common/k_experts.h"
#include "sluice/runtime/kernels/linear.h"
#include "sluice/runtime/kernels/rms_norm/rms_norm.h"

SLUICE_BEGIN_NAMESPACE
namespace token {
// Items are the tokens of prompts, hidden [items, dim] the state that enters the layer; the visual
// ones are those at positions [first, first + visual) of their sequence. Without positions all
// items are of one sequence. Units {0: run, the host's; 1: pass}. A visual token depends on the
// others, also on later ones: for prompts, not for parts of them. O(items dim).
class CogVla {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "token/cog_vla",
      .title =
          "CogVLA: Cognition-Aligned Vision-Language-Action Model via Instruction-Driven "
          "Routing & Sparsification",
      .arxiv = "2508.21046",
      .domain = Domain::kToken,
      .combine = Combine::kReplace,
      .decides = Decides::kPrompt,
      .learned = true,
      .causal = false,
      .items_alone = false,
      .reads = kReadsHidden,
      .may_read = kReadsPositions,
      .full_budget = "schedule=constant,rho=1",
      .small_budget = "schedule=constant,rho=0.2",
  };
  enum Unit : int32_t { kRun = 0, kPass = 1 };

  enum class Schedule : uint8_t { kCosine, kConstant };
  enum class Weight : uint8_t { kOne, kTrained };
  struct Config {
    int64_t layer = 0;
    int64_t first = 1;
    int64_t visual = 256;
    Schedule schedule = Schedule::kCosine;
    double rho = 0.5;
    double max = 0.85;
    double min = 0.15;
    double average = 0.5;
    Weight weight = Weight::kOne;
    double epsilon = 1e-6;

    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "decoder layer whose router it is");
      v("first", first, Range<int64_t>{0, 1 << 30}, "position of the first visual token");
      v("visual", visual, Range<int64_t>{0, 1 << 30}, "visual tokens of a sequence");
      v("schedule", schedule, Choices{"cosine", "constant"},
        "share of the visual tokens that run: falling with the layer, or rho");
      v("rho", rho, Range<double>{0, 1}, "that share, with schedule=constant");
      v("max", max, Range<double>{0, 1.5}, "cosine: layers of a greater share run all");
      v("min", min, Range<double>{0, 1}, "cosine: least share");
      v("average", average, Range<double>{0, 1}, "cosine: share of the middle layer");
      v("weight", weight, Choices{"one", "trained"},
        "of a token that runs; trained: the router's, for models that were trained with it");
      v("epsilon", epsilon, Range<double>{0, 1}, "of the norm; inferred");
    }
  };
  struct Plan : RoutePlanInfo {
    size_t normed = 0;  // [workers, dim]
    size_t rank = 0;    // [items]
    size_t runs = 0;    // [items]
    size_t chosen = 0, select = 0;
  };

  // rho of a layer by the cosine; 1 of one that runs all.
  static double CosineShare(const Config& c, int64_t layers) {
    const double at =
        layers > 1 ? static_cast<double>(c.layer) / static_cast<double>(layers - 1) : 0;
    const double rho = std::max(std::cos(std::numbers::pi * at) / 2 + c.average, c.min);
    return rho > c.max ? 1 : rho;
  }

  static absl::StatusOr<CogVla> Create(const Config& c, const WeightSource& w) {
    SLUICE_RETURN_IF_ERROR(CheckIgnored(c));
    CogVla r;
    r.config_ = c;
    SLUICE_ASSIGN_OR_RETURN(const int64_t layers, w.Int("sluice.cog_vla.layers"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t dim, w.Int("sluice.cog_vla.dim"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t film, w.Int("sluice.cog_vla.film"));
    constexpr int64_t kMost = 1 << 20;
    if (c.layer >= layers)
      return absl::OutOfRangeError(
          absl::StrCat("layer=", c.layer, ", but the weights have ", layers, " layers"));
    if (dim <= 0 || dim > kMost)
      return absl::InvalidArgumentError(
          absl::StrCat("sluice.cog_vla.dim ", dim, "; allowed 1 to ", kMost));
    if (film != 0)
      return absl::UnimplementedError(
          absl::StrCat("sluice.cog_vla.film is ", film, "; implemented: 0"));
    r.share_ = c.schedule == Schedule::kConstant ? c.rho : CosineShare(c, layers);

    const std::string at = absl::StrCat("blk.", c.layer, ".cog_vla.");
    const uint64_t width[] = {static_cast<uint64_t>(dim)};
    SLUICE_ASSIGN_OR_RETURN(r.norm_, w.ReadF32(at + "norm.weight", width));
    SLUICE_ASSIGN_OR_RETURN(r.router_, Linear::Read(w, at + "router", dim, 2));
    return r;
  }
  static WeightKeys Weights(const Config& c, const RouteShape& s) {
    const std::string at = absl::StrCat("blk.", c.layer, ".cog_vla.");
    WeightKeys w;
    w.ints = {{"sluice.cog_vla.layers", c.layer + 1},
              {"sluice.cog_vla.dim", s.hidden},
              {"sluice.cog_vla.film", 0}};
    w.tensors = {{at + "norm.weight", {s.hidden}}};
    w.AddLinear(at + "router", s.hidden, 2);
    return w;
  }
  // Share of the visual tokens that run in this layer.
  double share() const { return share_; }
  // Of m visual tokens.
  int64_t Quota(int64_t m) const {
    return static_cast<int64_t>(std::floor(static_cast<double>(m) * share_));
  }

  UnitInfo DescribeUnit(const Plan&, int64_t unit) const {
    if (unit == kPass) return {UnitKind::kSkip, 0.0, Concurrency::kRows};
    return {UnitKind::kHost, 1.0, Concurrency::kAlone};
  }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    Plan p;
    SLUICE_ASSIGN_OR_RETURN(p.shape, one_unit::Shape(s, 2, "hidden", s.hidden, router_.in));
    WorkspaceLayout w;
    p.normed = w.Add<float>(router_.in * std::max(1, s.workers));
    p.rank = w.Add<float>(s.items);
    p.runs = w.Add<uint8_t>(s.items);
    p.chosen = w.Add<int32_t>(s.items);
    p.select = w.Add<std::byte>(pipeline::RowScratch(s.items).bytes());
    p.max_entries = s.items;
    p.workspace_bytes = w.bytes();
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    SLUICE_RETURN_IF_ERROR(expert::CheckTokens(in));
    float* rank = ctx.workspace.At<float>(p.rank);
    uint8_t* runs = ctx.workspace.At<uint8_t>(p.runs);
    expert::ForEachPiece(in.items, p.shape.workers, ctx,
                         [&](int64_t begin, int64_t end, int worker) {
                           float* normed = ctx.workspace.At<float>(p.normed) + router_.in * worker;
                           for (int64_t i = begin; i < end; ++i)
                             rank[i] = Score(in.hidden.row(i), normed);
                         });
    std::fill_n(runs, in.items, uint8_t{1});
    expert::ForEachSequence(
        in, [&](int64_t begin, int64_t end) { Prune(p, in, begin, end, ctx.workspace); });

    one_unit::Assign(in.items, 2, out, [&](int64_t i) -> one_unit::Choice {
      return {runs[i] != 0 ? kRun : kPass, rank[i]};
    });
    if (config_.weight == Weight::kOne) return absl::OkStatus();
    for (int64_t i = 0; i < in.items; ++i) {
      if (runs[i] != 0 && !std::isnan(rank[i])) out.weight[i] = 1 / (1 + std::exp(-rank[i]));
    }
    return absl::OkStatus();
  }

 private:
  static absl::Status CheckIgnored(const Config& c) {
    const Config d;
    if (c.schedule == Schedule::kCosine && c.rho != d.rho)
      return absl::InvalidArgumentError("rho without schedule=constant would be ignored");
    if (c.schedule == Schedule::kConstant &&
        (c.max != d.max || c.min != d.min || c.average != d.average))
      return absl::InvalidArgumentError(
          "max, min and average with schedule=constant would be ignored");
    return absl::OkStatus();
  }

  // The logit of running less that of passing.
  float Score(const float* x, float* normed) const {
    kernels::RmsNorm(x, norm_.data(), router_.in, static_cast<float>(config_.epsilon), normed);
    float logits[2];
    router_.Apply(normed, logits);
    return logits[1] - logits[0];
  }

  // Of the visual tokens of the sequence [begin, end), those over the quota do not run.
  void Prune(const Plan& p, const RouteInputs& in, int64_t begin, int64_t end,
             const Workspace& w) const {
    const auto visual = [&](int64_t i) {
      const int64_t at = in.positions.empty() ? i - begin : in.positions[i];
      return at >= config_.first && at < config_.first + config_.visual;
    };
    int64_t first = begin;
    while (first < end && !visual(first)) ++first;
    int64_t last = first;
    while (last < end && visual(last)) ++last;

    uint8_t* runs = w.At<uint8_t>(p.runs);
    const int64_t m = last - first;
    if (Quota(m) >= m) return;
    std::fill_n(runs + first, m, uint8_t{0});
    if (Quota(m) == 0) return;
    int32_t* chosen = w.At<int32_t>(p.chosen);
    const int64_t n =
        pipeline::TopK({w.At<float>(p.rank) + first, static_cast<size_t>(m)}, Quota(m),
                       pipeline::RowScratch(p.shape.items), w.At<std::byte>(p.select), chosen);
    for (int64_t e = 0; e < n; ++e) runs[first + chosen[e]] = 1;
  }

  Config config_;
  double share_ = 1;
  std::vector<float> norm_;
  Linear router_;
};
}  // namespace token
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_TOKEN_COG_VLA_COG_VLA_H_
