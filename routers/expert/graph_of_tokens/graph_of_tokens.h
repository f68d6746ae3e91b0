#ifndef SLUICE_ROUTERS_EXPERT_GRAPH_OF_TOKENS_GRAPH_OF_TOKENS_H_
#define SLUICE_ROUTERS_EXPERT_GRAPH_OF_TOKENS_GRAPH_OF_TOKENS_H_
// Tokens decide together (arXiv 2505.00792): before experts are chosen, a token's scores are mixed
// with those of tokens like it, so that its choice flips less often. The paper's formulas could not
// be read; those below are inferred from what its abstract says.
//
//   SCORE   R = softmax(logits) of each token, or the logits themselves (space=logit)
//   COUPLE  S = row softmax(X X^T / tau) over the tokens        (coupling=similarity)
//           S = attention probabilities, mean over the heads    (coupling=attention)
//           of each row the best `neighbours`; rows sum to 1
//           R' = (1 - alpha) R + alpha S R
//   SELECT  the best k of R' (of its softmax where it is logits), weights divided by their sum
//
// alpha = 0 and S = I are the standard router, bit for bit. The library's own choices (ours):
// alpha, neighbours, tau = sqrt(width), and that later tokens do not count (causal). A learned W_s
// inside the similarity is not read: give S as coupling=attention. What was not trained so is not
// known to gain, and the operator by itself lowers no entropy: averages of unlike tokens have more.
//
// NaN: a NaN score is NaN in every token that it is mixed into, never selected, and counted; a NaN
// similarity or attention is no edge, and a token without edges keeps its own scores. Ties go to
// the lowest index.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/coupling.h"
#include "sluice/routers/common/pipeline/gate.h"
#include "sluice/routers/common/pipeline/selector.h"
#include "sluice/routers/expert/common/k_experts.h"
#include "sluice/runtime/kernels/gemm/gemm.h"
#include "sluice/runtime/kernels/top_k/top_k.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// Items are tokens; scores [items, units] the logits of the model's own gate; hidden [items,
// hidden] what the experts read; features [items, at least items] the attention of token i to token
// j, for coupling=attention; units are the experts, all the host's. Tokens of a sequence couple,
// and `positions` that do not rise begin another. To route one more token, give those before it
// again, or keep their scores and mix with pipeline::MixItems. O(items^2 (hidden + units)), less
// where there are fewer neighbours.
class GraphOfTokens {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "expert/graph_of_tokens",
      .title = "Improving Routing in Sparse Mixture of Experts with Graph of Tokens",
      .arxiv = "2505.00792",
      .domain = Domain::kExpert,
      .combine = Combine::kWeightedSum,
      .decides = Decides::kToken,
      .items_alone = false,
      .reads = kReadsScores | kReadsHidden,
      .may_read = kReadsFeatures | kReadsPositions,
      .full_budget = "k=0",
      .small_budget = "k=1",
  };
  // `causal` holds unless causal=false is asked for.

  enum class Coupling : uint8_t { kSimilarity, kAttention };
  enum class Space : uint8_t { kProbability, kLogit };
  struct Config {
    int64_t k = 2;
    Coupling coupling = Coupling::kSimilarity;
    Space space = Space::kProbability;
    double alpha = 1;
    double tau = 0;
    int64_t neighbours = 0;
    bool causal = true;

    template <class V>
    void VisitFields(V&& v) {
      v("k", k, Range<int64_t>{0, 65536}, "experts a token; 0: all of them");
      v("coupling", coupling, Choices{"similarity", "attention"},
        "tokens are alike by their hidden states, or by the attention given as features");
      v("space", space, Choices{"probability", "logit"}, "what is mixed");
      v("alpha", alpha, Range<double>{0, 1}, "share of the others; 0: the standard router");
      v("tau", tau, Range<double>{0, 1e6}, "temperature of the similarity; 0: sqrt(width)");
      v("neighbours", neighbours, Range<int64_t>{0, 1 << 30}, "tokens coupled with; 0: all");
      v("causal", causal, Range<bool>{false, true}, "later tokens do not count");
    }
  };
  struct Plan : RoutePlanInfo {
    KExperts choose;
    size_t own = 0, mixed = 0;                                  // [items, units]
    size_t alike = 0, gemm = 0, item = 0, weight = 0, top = 0;  // of the workers
    int64_t gemm_floats = 0, top_bytes = 0;                     // of one worker
  };

  static absl::StatusOr<GraphOfTokens> Create(const Config& c) {
    if (c.coupling == Coupling::kAttention && c.tau != 0)
      return absl::InvalidArgumentError(
          absl::StrCat("tau=", c.tau, " with coupling=attention would be ignored"));
    GraphOfTokens r;
    r.config_ = c;
    return r;
  }

  UnitInfo DescribeUnit(const Plan& p, int64_t) const { return DescribeExpert(p); }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    if (s.hidden <= 0)
      return absl::InvalidArgumentError("shape: hidden 0; say how wide the tokens are");
    Plan p;
    p.shape = s;
    WorkspaceLayout w;
    SLUICE_ASSIGN_OR_RETURN(p.choose, KExperts::Reserve(s, config_.k, w));
    if (s.items > std::numeric_limits<int32_t>::max() / std::max(kTile, s.units))
      return absl::InvalidArgumentError(
          absl::StrCat(s.items, " items of ", s.units, " experts; allowed 2^31 - 1 scores"));
    const int64_t workers = std::max(1, s.workers);
    p.max_entries = p.choose.max_entries();
    p.own = w.Add<float>(s.items * s.units);
    p.mixed = w.Add<float>(s.items * s.units);
    p.gemm_floats = kernels::GemmScratchFloats(s.hidden);
    p.top_bytes = (kernels::TopKScratchBytes(s.items) + 63) / 64 * 64;
    p.alike = w.Add<float>(kTile * s.items * workers);
    p.gemm = w.Add<float>(p.gemm_floats * workers);
    p.item = w.Add<int32_t>(s.items * workers);
    p.weight = w.Add<float>(s.items * workers);
    p.top = w.Add<std::byte>(p.top_bytes * workers);
    p.workspace_bytes = w.bytes();
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    SLUICE_RETURN_IF_ERROR(CheckTokens(in));
    const bool by_attention = config_.coupling == Coupling::kAttention && config_.alpha > 0;
    if (by_attention && in.features.cols < in.items)
      return absl::InvalidArgumentError(
          absl::StrCat("coupling=attention reads features [items, items], the attention of each "
                       "token to each; given [",
                       in.features.rows, ", ", in.features.cols, "] for ", in.items, " items"));

    const float* scores = ctx.workspace.At<float>(p.own);
    ScoreTokens(p, in, ctx);
    if (config_.alpha > 0) {
      scores = ctx.workspace.At<float>(p.mixed);
      ForEachSequence(in, [&](int64_t begin, int64_t end) {
        ForEachPiece(end - begin, p.shape.workers, ctx, [&](int64_t b, int64_t e, int worker) {
          for (int64_t at = b; at < e; at += kTile)
            MixTile(p, in, {begin, end}, {begin + at, begin + std::min(e, at + kTile)}, worker,
                    ctx);
        });
      });
    }

    const auto kind = config_.space == Space::kLogit ? pipeline::ScoreKind::kSoftmax
                                                     : pipeline::ScoreKind::kLogit;
    p.choose.Run(
        in.items, ctx,
        [&](int64_t i, int, const pipeline::Scores& to) {
          return pipeline::ScoreRow(kind, scores + i * p.shape.units, {}, to);
        },
        [](absl::Span<float> weight) {
          pipeline::NormaliseRow(pipeline::Renormalise::kSum, 1, weight);
        },
        out);
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kTile = 64;  // tokens whose similarities are computed at once
  struct Tokens {
    int64_t begin = 0, end = 0;
  };

  // SCORE: what is mixed.
  void ScoreTokens(const Plan& p, const RouteInputs& in, const RunContext& ctx) const {
    const int64_t units = p.shape.units;
    const auto kind = config_.space == Space::kLogit ? pipeline::ScoreKind::kLogit
                                                     : pipeline::ScoreKind::kSoftmax;
    ForEachPiece(in.items, p.shape.workers, ctx, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const absl::Span<float> row = {ctx.workspace.At<float>(p.own) + i * units,
                                       static_cast<size_t>(units)};
        pipeline::ScoreRow(kind, in.scores.row(i), {}, {row, row});
      }
    });
  }

  // COUPLE: the tokens of one tile, with those of their sequence.
  void MixTile(const Plan& p, const RouteInputs& in, Tokens sequence, Tokens tile, int worker,
               const RunContext& ctx) const {
    const Workspace& w = ctx.workspace;
    const int64_t units = p.shape.units;
    const int64_t end = config_.causal ? tile.end : sequence.end;
    const int64_t columns = end - sequence.begin;
    float* alike = w.At<float>(p.alike) + kTile * p.shape.items * worker;
    if (config_.coupling == Coupling::kSimilarity)
      kernels::GemmNT(in.hidden.row(tile.begin), in.hidden.row_stride,
                      in.hidden.row(sequence.begin), in.hidden.row_stride, tile.end - tile.begin,
                      columns, in.hidden.cols, alike, columns,
                      w.At<float>(p.gemm) + p.gemm_floats * worker);

    const MatrixView<const float> own = {w.At<float>(p.own), in.items, units, units};
    int32_t* item = w.At<int32_t>(p.item) + p.shape.items * worker;
    float* weight = w.At<float>(p.weight) + p.shape.items * worker;
    for (int64_t i = tile.begin; i < tile.end; ++i) {
      const int64_t n = (config_.causal ? i + 1 : end) - sequence.begin;
      float* row = alike + (i - tile.begin) * columns;
      if (config_.coupling == Coupling::kSimilarity) {
        SoftmaxOfNumbers({row, static_cast<size_t>(n)}, in.hidden.cols);
      } else {
        std::copy_n(in.features.row(i) + sequence.begin, n, row);
      }
      const int64_t edges = Edges(p, row, n, worker, ctx, item, weight);
      for (int64_t e = 0; e < edges; ++e) item[e] += static_cast<int32_t>(sequence.begin);

      const int64_t row_ptr[] = {0, edges};
      const auto size = static_cast<size_t>(edges);
      pipeline::MixItems(own, {row_ptr, {item, size}, {weight, size}},
                         static_cast<float>(config_.alpha),
                         {w.At<float>(p.mixed) + i * units, 1, units, units}, i);
    }
  }

  // exp(x / tau) of each number, the greatest 1; rows are divided by their sum later.
  void SoftmaxOfNumbers(absl::Span<float> x, int64_t width) const {
    const double tau = config_.tau > 0 ? config_.tau : std::sqrt(static_cast<double>(width));
    float most = pipeline::kNever;
    for (float v : x) most = v > most ? v : most;
    for (float& v : x) v = std::exp((v - most) / static_cast<float>(tau));
  }

  // The edges of one token: of row [n] what is above 0, or the best of it, divided by their sum.
  int64_t Edges(const Plan& p, float* row, int64_t n, int worker, const RunContext& ctx,
                int32_t* item, float* weight) const {
    int64_t edges = 0;
    if (config_.neighbours > 0 && config_.neighbours < n) {
      for (int64_t j = 0; j < n; ++j) row[j] = row[j] > 0 ? row[j] : pipeline::kNever;
      std::byte* scratch = ctx.workspace.At<std::byte>(p.top) + p.top_bytes * worker;
      auto* index = reinterpret_cast<uint32_t*>(item);
      edges = kernels::TopK(row, n, config_.neighbours, index, scratch).count;
    } else {
      for (int64_t j = 0; j < n; ++j) {
        if (row[j] > 0) item[edges++] = static_cast<int32_t>(j);
      }
    }
    float sum = 0;
    for (int64_t e = 0; e < edges; ++e) sum += row[item[e]];
    for (int64_t e = 0; e < edges; ++e) weight[e] = row[item[e]] / sum;
    return edges;
  }

  Config config_;
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_GRAPH_OF_TOKENS_GRAPH_OF_TOKENS_H_
