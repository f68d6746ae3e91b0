#ifndef SLUICE_ROUTERS_ATTENTION_SUPERLINEAR_SUPERLINEAR_H_
#define SLUICE_ROUTERS_ATTENTION_SUPERLINEAR_SUPERLINEAR_H_
// Superlinear attention: a second query searches a few anchors of the history, whose distances grow
// ever faster, and attention reads a span of keys at each of the best. Learned, for prefill and
// decode.
//
//   PREP    the search query: a linear map of the layer's input, turned to its position
//   SCORE   its products with the anchors' keys, unscaled; anchor i of query t is key
//           t + 1 - floor(i^(1/p)), for those before the window
//   SELECT  the k best anchors of each query head
//   REFINE  anchor a to the span [a - ceil(back (t+1)^e), a + ceil(ahead (t+1)^e)], before the
//           window
//   ATTEND  the window once (branch 0), then each span in one softmax with it (branches 1 to k)
//   MERGE   sum of gate * output, gates = softmax over the chosen anchors' scores
//
// The window has W = floor((sw_index + 1)^(1/p)) - 1 keys; a query that it covers is dense. Every
// key can be reached where p + e is at least 1 and spans are wide enough.
// search=own: a substitute without weights, to be named as such wherever it is measured: the
// attention's own query searches.
// Inferred: that the search query is turned as the others are (interleaved pairs, as GGUF files of
// Llama have them). The source was read at second hand, from kernels; its scores have no 1/sqrt(d)
// either. A missing anchor has no gate; the source gives all gates alike where no anchor can be
// chosen at all, which leaves the window alone, as here.
//
// Ties go to the nearest anchor; a NaN is never chosen, and a query without a choice keeps its
// window. Planning costs keys^p products a query and head. Nothing is kept between calls.
#include <string>
#include <vector>

#include "sluice/api/config.h"
#include "sluice/routers/attention/common/dims.h"
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/runtime/kernels/top_k/top_k.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Superlinear {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "superlinear",
      .title = "Superlinear Multi-Step Attention",
      .arxiv = "2601.18401",
      .token_causal = true,
      .reads_hidden = true,
      .full_budget = "sw_index=2147483648",
      .small_budget = "sw_index=5,k=2,p=0.5,e=0.5,back=1,ahead=0"};

  enum class Search : uint8_t { kLearned, kOwn };
  struct Span {
    int64_t begin = 0;
    int64_t end = 0;
  };
  struct Config {
    int64_t sw_index = 65;
    int64_t k = 3;
    double p = 0.55;
    double e = 0.55;
    double back = 3;
    double ahead = 1;
    int64_t tile = 64;
    Search search = Search::kLearned;
    template <class V>
    void VisitFields(V&& v) {
      v("sw_index", sw_index, Range<int64_t>{0, kEverything},
        "anchors that the window stands for: (sw_index + 1)^(1/p) - 1 keys");
      v("k", k, Range<int64_t>{1, kMostSpans}, "spans per query and head");
      v("p", p, Range<double>{0.05, 1}, "a query has keys^p anchors");
      v("e", e, Range<double>{0, 1}, "a span has some keys^e keys");
      v("back", back, Range<double>{0, 1e6}, "times keys^e: how far a span reaches back");
      v("ahead", ahead, Range<double>{0, 1e6}, "times keys^e: how far a span reaches ahead");
      v("tile", tile, Range<int64_t>{1, 64}, "queries whose windows run together; no list changes");
      v("search", search, Choices{"learned", "own"},
        "search queries of the weights, or the attention's own");
    }
    bool Learns() const { return search == Search::kLearned; }

    // How far before the end the i-th anchor lies, at most 2^40.
    int64_t Distance(int64_t i) const {
      constexpr double kMost = 1099511627776.0;
      return static_cast<int64_t>(std::min(kMost, std::pow(static_cast<double>(i), 1 / p)));
    }
    int64_t Window() const { return Distance(sw_index + 1) - 1; }
    // Of the i-th anchor beyond the window of the query at t, from 0; negative: there is none.
    int64_t Anchor(int64_t t, int64_t i) const { return t + 1 - Distance(sw_index + 1 + i); }
    Span SpanOf(int64_t t, int64_t anchor) const {
      const double size = std::pow(static_cast<double>(t + 1), e);
      const auto before = static_cast<int64_t>(std::ceil(back * size));
      const auto after = static_cast<int64_t>(std::ceil(ahead * size));
      return {std::max<int64_t>(0, anchor - before), std::min(anchor + after, t - Window()) + 1};
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    int64_t anchors = 0;
    Scratch<float> queries, keys, scores, gate, gemm;
    Scratch<uint32_t> chosen;
    Scratch<std::byte> top;
  };

  static WeightKeys Weights(const Config& c, const AttentionShape& s) {
    WeightKeys keys;
    if (!c.Learns()) return keys;
    const Dims dims = {s.layers, s.heads, s.head_dim, s.width};
    DeclareDims(kTraits.name, kDims, dims, keys);
    const std::vector<uint64_t> shape = dims.QueryShape();
    for (int64_t layer = 0; layer < s.layers; ++layer)
      keys.tensors.push_back({TensorName(layer), {shape.begin(), shape.end()}});
    return keys;
  }

  static absl::StatusOr<Superlinear> Create(const Config& c) {
    if (!c.Learns()) return Superlinear(c);
    return absl::FailedPreconditionError(
        "needs trained weights and got none: give weights=FILE, or search=own for a substitute");
  }
  static absl::StatusOr<Superlinear> Create(const Config& c, const WeightSource& w) {
    Superlinear r(c);
    if (!c.Learns()) return r;
    SLUICE_RETURN_IF_ERROR(ReadDims(w, kTraits.name, kDims, r.dims_));
    for (int64_t layer = 0; layer < r.dims_.layers; ++layer) {
      SLUICE_ASSIGN_OR_RETURN(std::vector<float> query,
                              w.ReadF32(TensorName(layer), r.dims_.QueryShape()));
      r.layers_.push_back(std::move(query));
    }
    return r;
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    SLUICE_RETURN_IF_ERROR(CheckDims(s));
    Plan plan(s);
    const int64_t group = GroupSize(s);
    while (config_.Anchor(s.max_kv - 1, plan.anchors) >= 0) ++plan.anchors;
    plan.queries = plan.AddScratch<float>(group * s.head_dim);
    plan.keys = plan.AddScratch<float>(kKeyBatch * s.head_dim);
    plan.scores = plan.AddScratch<float>(group * std::max<int64_t>(1, plan.anchors));
    plan.gemm = AddGemmScratch(plan, std::max<int64_t>(s.head_dim, s.width));
    plan.chosen = plan.AddScratch<uint32_t>(config_.k);
    plan.gate = plan.AddScratch<float>(config_.k);
    plan.top = plan.AddScratch<std::byte>(kernels::TopKScratchBytes(plan.anchors));
    plan.layout.max_tile = config_.tile;
    plan.layout.weight_slots = (config_.k + 1) * s.max_queries * s.heads;
    plan.layout.AddBranch({.rows = s.kv_heads * MaxTiles(s, config_.tile), .entry_slots = 1});
    for (int64_t i = 0; i < config_.k; ++i)
      plan.layout.AddBranch({.rows = s.heads * s.max_queries, .entry_slots = 1});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext& ctx,
                   PlanBuilder& out) const {
    if (config_.Learns() && (in.layer < 0 || in.layer >= std::ssize(layers_)))
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", in.layer, " of ", layers_.size(), " with weights"));
    Begin(plan.shape, in, out, Merge::kWeightedSum);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter window,
                            out.AddBranch({.tile = config_.tile, .window = config_.Window()}));
    BranchWriter spans[kMostSpans];
    for (int64_t i = 0; i < config_.k; ++i) {
      SLUICE_ASSIGN_OR_RETURN(
          spans[i], out.AddBranch({.scope = ListScope::kQueryHead, .tile = 1, .init_from = 0}));
    }
    ForEachRow(window, plan, ctx, [&](int64_t kv, int64_t tile, WorkerScratch) {
      const TileQueries q = window.Queries(tile);
      const int64_t row = window.row_of(kv, tile);
      const int64_t start = std::max<int64_t>(0, q.first - config_.Window() + 1);
      window.set_count(row, config_.Window() > 0 ? 1 : 0);
      window.entries(row)[0] =
          ExactEntry(start, q.last + 1 - start, MaskClass::kLowerBound, /*forced=*/true);
    });
    float* weights = out.branch_weights();
    const int64_t items = in.k.heads * in.q.rows;
    ctx.executor->ParallelFor(items, 8, [&](int64_t begin, int64_t end, int w) {
      for (int64_t i = begin; i < end; ++i)
        RouteQuery(plan, in, i / in.q.rows, i % in.q.rows, plan.Worker(ctx, w), spans, weights);
    });
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kMostSpans = PlanLayout::kMaxBranches - 1;
  struct Dims {
    int64_t layers = 0;
    int64_t heads = 0;
    int64_t head_dim = 0;
    int64_t width = 0;
    std::vector<uint64_t> QueryShape() const {  // fastest dimension first
      return {static_cast<uint64_t>(width), static_cast<uint64_t>(heads * head_dim)};
    }
  };
  static constexpr DimName<Dims> kDims[] = {{"layers", &Dims::layers},
                                            {"heads", &Dims::heads},
                                            {"head_dim", &Dims::head_dim},
                                            {"width", &Dims::width}};
  static std::string TensorName(int64_t layer) {
    return absl::StrCat("superlinear.", layer, ".query");
  }

  explicit Superlinear(const Config& c) : config_(c) {}

  absl::Status CheckDims(const AttentionShape& s) const {
    const Dims& d = dims_;
    const bool same = d.layers >= s.layers && d.heads == s.heads && d.head_dim == s.head_dim &&
                      d.width == s.width;
    if (!config_.Learns() || same) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("weights of ", d.layers, " layers, ", d.heads, " heads of width ", d.head_dim,
                     ", hidden width ", d.width, "; the model has ", s.layers, ", ", s.heads, ", ",
                     s.head_dim, " and ", s.width));
  }

  // Spans and weights of a query's heads that share a KV head.
  void RouteQuery(const Plan& plan, const AttentionInputs& in, int64_t kv, int64_t i,
                  WorkerScratch scratch, BranchWriter* spans, float* weights) const {
    const int64_t t = in.q_begin + i;
    const int64_t group = GroupSize(plan.shape);
    const int64_t anchors = ScoreAnchors(plan, in, kv, i, scratch);
    for (int64_t member = 0; member < group; ++member) {
      const int64_t head = kv * group + member;
      const auto weight = [&](int64_t branch) -> float& {
        return weights[(branch * in.q.rows + i) * in.q.heads + head];
      };
      uint32_t* chosen = scratch[plan.chosen];
      float* score = scratch[plan.scores] + member * anchors;
      const int64_t n =
          kernels::TopK(score, anchors, std::min(config_.k, anchors), chosen, scratch[plan.top])
              .count;
      float* gate = scratch[plan.gate];
      for (int64_t s = 0; s < n; ++s) gate[s] = score[chosen[s]];
      kernels::Softmax(gate, n);
      weight(0) = n == 0 ? 1.0f : 0.0f;
      for (int64_t s = 0; s < config_.k; ++s) {
        const int64_t row = spans[s].row_of(head, i);
        spans[s].set_count(row, 0);
        weight(s + 1) = s < n ? gate[s] : 0.0f;
        if (s >= n) continue;
        const Span span = config_.SpanOf(t, config_.Anchor(t, chosen[s]));
        spans[s].entries(row)[0] = ExactEntry(span.begin, span.end - span.begin);
        spans[s].set_count(row, 1);
      }
    }
  }

  // plan.scores [group, anchors] of a query; returns how many anchors it has.
  int64_t ScoreAnchors(const Plan& plan, const AttentionInputs& in, int64_t kv, int64_t i,
                       WorkerScratch scratch) const {
    const int64_t t = in.q_begin + i;
    const int64_t d = in.k.dim;
    const int64_t group = GroupSize(plan.shape);
    int64_t anchors = 0;
    while (anchors < plan.anchors && config_.Anchor(t, anchors) >= 0) ++anchors;
    if (anchors == 0) return 0;
    for (int64_t member = 0; member < group; ++member)
      SearchQuery(in, kv * group + member, i, scratch[plan.queries] + member * d,
                  scratch[plan.gemm]);
    float* keys = scratch[plan.keys];
    for (int64_t at = 0; at < anchors; at += kKeyBatch) {
      const int64_t n = std::min(kKeyBatch, anchors - at);
      for (int64_t j = 0; j < n; ++j)
        KeysAsFloat(in.k, kv, config_.Anchor(t, at + j), 1, keys + j * d);
      kernels::GemmNT(scratch[plan.queries], d, keys, d, group, n, d, scratch[plan.scores] + at,
                      anchors, scratch[plan.gemm]);
    }
    return anchors;
  }
  void SearchQuery(const AttentionInputs& in, int64_t head, int64_t i, float* out,
                   float* gemm) const {
    const int64_t d = in.q.dim;
    if (!config_.Learns()) {
      ScaledQueries(in.q, {i, 1}, head, 1, out);
      return;
    }
    ScoreDot(in.hidden.row(i), 1, layers_[in.layer].data() + head * d * dims_.width, d, dims_.width,
             out, gemm);
    RotateTo(out, d, in.q_begin + i, in.rope_base);
  }

  Config config_;
  Dims dims_;
  std::vector<std::vector<float>> layers_;  // [heads * d, width]; empty with search=own
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SUPERLINEAR_SUPERLINEAR_H_
