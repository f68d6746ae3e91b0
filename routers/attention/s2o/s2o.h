#ifndef SLUICE_ROUTERS_ATTENTION_S2O_S2O_H_
#define SLUICE_ROUTERS_ATTENTION_S2O_S2O_H_
// S2O: no mask is chosen; each segment of queries walks its history by falling importance and stops
// when the rest adds too little. Training-free. The source gives no segment length, guide vector,
// threshold or grouping of heads: those are inferred, and are switches.
//
//   ATTEND  the segment itself, causal, and the sink: the state that the history resumes from
//   SCORE   every key before the segment against the segment's mean query
//   PERM    history by falling score; queries by their product with a guide vector, so that
//           like-minded queries share a tile
//   STOP    a tile once a panel of 64 keys adds less than tau to the normaliser of all of its rows,
//           or once a panel's best score lies below tau of the history's best
//
// A segment is what a call holds of it, so lists depend on how a prompt is cut. Planning costs
// queries / segment * keys * width a list, and a sort. With tau = 0 nothing stops.
#include "sluice/routers/attention/common/perm.h"
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class S2o {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "s2o",
      .title = "S2O: Early Stopping for Sparse Attention via Online Permutation",
      .arxiv = "2602.22575",
      .chunk_invariant = false,
      .full_budget = "tau=0",
      .small_budget = "segment=64,sink=0,stop=score,tau=0.5"};

  enum class Stop : uint8_t { kGain, kScore };
  enum class Guide : uint8_t { kMean, kRandom, kNone };
  enum class Similarity : uint8_t { kDot, kCosine };
  enum class Share : uint8_t { kKvHead, kHead };
  struct Config {
    int64_t segment = 1024;
    int64_t tile = 64;
    int64_t sink = 64;
    int64_t unit = 1;
    Stop stop = Stop::kGain;
    double tau = 1e-3;
    Guide guide = Guide::kMean;
    Similarity similarity = Similarity::kDot;
    Share share = Share::kKvHead;
    template <class V>
    void VisitFields(V&& v) {
      v("segment", segment, Range<int64_t>{16, 1 << 20},
        "queries and keys per segment (inferred: 1024 to 4096)");
      v("tile", tile, Range<int64_t>{1, 256}, "queries that stop together (inferred)");
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first keys attended by all (inferred)");
      v("unit", unit, Range<int64_t>{1, 256},
        "consecutive keys that are ranked as one, by their mean score (inferred: 1)");
      v("stop", stop, Choices{"gain", "score"},
        "what is compared with tau: growth of the normaliser, or a panel's score");
      v("tau", tau, Range<double>{0, 1}, "threshold of the stop rule (inferred); 0: never stop");
      v("guide", guide, Choices{"mean", "random", "none"},
        "vector that ranks a segment's queries: their mean, a fixed random one, or no ranking "
        "(inferred)");
      v("similarity", similarity, Choices{"dot", "cosine"},
        "of a key to the mean query (inferred)");
      v("share", share, Choices{"kv", "head"}, "who shares a ranking (inferred)");
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    int64_t lists = 0;
    int64_t segments = 0;  // of one call, at most
    int64_t tiles = 0;
    Scratch<float> mean, guide, scores, keys, gemm;
    Scratch<uint32_t> order;
  };

  static absl::StatusOr<S2o> Create(const Config& c) { return S2o(c); }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    plan.lists = config_.share == Share::kHead ? s.heads : s.kv_heads;
    plan.segments = CeilDiv(s.max_queries, config_.segment) + 1;
    plan.tiles = MaxTiles(s, config_.tile) + plan.segments;
    const int64_t most = std::max(s.max_kv, s.max_queries);
    plan.mean = plan.AddScratch<float>(s.head_dim);
    plan.guide = plan.AddScratch<float>(s.head_dim);
    plan.scores = plan.AddScratch<float>(most);
    plan.order = plan.AddScratch<uint32_t>(most);
    plan.keys = plan.AddScratch<float>(kKeyBatch * s.head_dim);
    plan.gemm = AddGemmScratch(plan, s.head_dim);
    plan.layout.max_tile = config_.tile;
    plan.layout.AddBranch({.rows = plan.tiles, .entry_slots = 2, .order_slots = s.max_queries});
    plan.layout.AddBranch({.rows = plan.lists * plan.tiles,
                           .token_slots = CeilDiv(plan.segments * s.max_kv, plan.tiles),
                           .order_slots = plan.lists * s.max_queries,
                           .bias = config_.stop == Stop::kScore});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext& ctx,
                   PlanBuilder& out) const {
    Begin(plan.shape, in, out);
    const int64_t first = in.q_begin / config_.segment;
    const int64_t segments = (in.kv_len() - 1) / config_.segment - first + 1;
    const int64_t tiles = TilesBefore(in, first, segments - 1) +
                          CeilDiv(PartOf(in, first + segments - 1).count, config_.tile);

    SLUICE_ASSIGN_OR_RETURN(
        BranchWriter own,
        out.AddBranch({.scope = ListScope::kAllHeads, .tile = config_.tile, .num_tiles = tiles}));
    SLUICE_ASSIGN_OR_RETURN(
        BranchWriter history,
        out.AddBranch(
            {.encoding = Encoding::kTokens,
             .scope = config_.share == Share::kHead ? ListScope::kQueryHead : ListScope::kKvHead,
             .tile = config_.tile,
             .num_tiles = tiles,
             .token_mask = MaskClass::kFull,
             .order = EntryOrder::kPriority,
             .stop = config_.stop == Stop::kGain ? StopRule::kGain : StopRule::kScore,
             .stop_tau = static_cast<float>(config_.tau),
             .bias = config_.stop == Stop::kScore}));
    OwnSegments(in, first, segments, own);
    for (int64_t list = 0; list < plan.lists; ++list)
      std::copy_n(own.tile_begin(0), tiles + 1, history.tile_begin(list));
    ctx.executor->ParallelFor(plan.lists * segments, 1, [&](int64_t begin, int64_t end, int w) {
      for (int64_t i = begin; i < end; ++i)
        RankSegment(plan, in, i / segments, first, i % segments, plan.Worker(ctx, w), history);
    });
    return absl::OkStatus();
  }

 private:
  // What the call holds of a segment.
  struct Part {
    int64_t start = 0;  // first key of the segment
    int64_t begin = 0;  // rows of AttentionInputs::q
    int64_t count = 0;
  };
  explicit S2o(const Config& c) : config_(c) {}

  Part PartOf(const AttentionInputs& in, int64_t segment) const {
    const int64_t start = segment * config_.segment;
    const int64_t from = std::max(in.q_begin, start);
    const int64_t to = std::min(in.q_begin + in.q.rows, start + config_.segment);
    return {start, from - in.q_begin, to - from};
  }

  // Tiles of the call's segments before a later one: only the first of them may lack queries.
  int64_t TilesBefore(const AttentionInputs& in, int64_t first, int64_t segment) const {
    if (segment == 0) return 0;
    return CeilDiv(PartOf(in, first).count, config_.tile) +
           (segment - 1) * CeilDiv(config_.segment, config_.tile);
  }

  // Tiles, none of which crosses a segment, and what their own segment gives them.
  void OwnSegments(const AttentionInputs& in, int64_t first, int64_t segments,
                   BranchWriter& branch) const {
    int64_t* tile_begin = branch.tile_begin(0);
    int64_t tile = 0;
    tile_begin[0] = 0;
    for (int64_t i = 0; i < in.q.rows; ++i) branch.q_order(0)[i] = static_cast<int32_t>(i);
    for (int64_t s = 0; s < segments; ++s) {
      const Part part = PartOf(in, first + s);
      const int64_t sink = std::min(config_.sink, part.start);
      const int64_t start = sink == part.start ? 0 : part.start;
      for (int64_t at = 0; at < part.count; at += config_.tile, ++tile) {
        tile_begin[tile + 1] = part.begin + std::min(part.count, at + config_.tile);
        const int64_t end = in.q_begin + tile_begin[tile + 1];
        PlanEntry* entries = branch.entries(tile);
        int64_t n = 0;
        if (start > 0 && sink > 0) entries[n++] = ExactEntry(0, sink, MaskClass::kFull, true);
        entries[n++] = ExactEntry(start, end - start, MaskClass::kCausal, true);
        branch.set_count(tile, n);
      }
    }
  }

  // Orders the queries of a segment and ranks the keys before it, for one list.
  void RankSegment(const Plan& plan, const AttentionInputs& in, int64_t list, int64_t first,
                   int64_t segment, WorkerScratch scratch, BranchWriter branch) const {
    const int64_t from = TilesBefore(in, first, segment);
    const Part part = PartOf(in, first + segment);
    const int64_t to = from + CeilDiv(part.count, config_.tile);
    MeanOfSegment(plan, in, list, part, scratch[plan.mean]);
    OrderQueries(plan, in, list, part, scratch, branch.q_order(list) + part.begin);

    const int64_t at = (list * plan.segments + segment) * plan.shape.max_kv;
    float* bias = config_.stop == Stop::kScore ? branch.bias(0) + at : nullptr;
    const int64_t n = part.start > config_.sink ? RankHistory(plan, in, list, part.start, scratch,
                                                              branch.tokens(0) + at, bias)
                                                : 0;
    for (int64_t t = from; t < to; ++t) branch.set_row(branch.row_of(list, t), at, n);
  }

  int64_t HeadsOf(const Plan& plan) const { return plan.shape.heads / plan.lists; }

  void MeanOfSegment(const Plan& plan, const AttentionInputs& in, int64_t list, const Part& part,
                     float* mean) const {
    const int64_t heads = HeadsOf(plan);
    const float share = 1.0f / static_cast<float>(heads);
    std::fill(mean, mean + in.q.dim, 0.0f);
    for (int64_t i = part.begin; i < part.begin + part.count; ++i) {
      for (int64_t h = list * heads; h < (list + 1) * heads; ++h) {
        for (int64_t x = 0; x < in.q.dim; ++x) mean[x] += in.q.at(i, h)[x];
      }
    }
    for (int64_t x = 0; x < in.q.dim; ++x)
      mean[x] *= share * in.scale / static_cast<float>(part.count);
  }

  void OrderQueries(const Plan& plan, const AttentionInputs& in, int64_t list, const Part& part,
                    WorkerScratch scratch, int32_t* to) const {
    const int64_t d = in.q.dim;
    const int64_t heads = HeadsOf(plan);
    const float* guide = scratch[plan.mean];
    if (config_.guide == Guide::kRandom) {
      float* random = scratch[plan.guide];
      for (int64_t x = 0; x < d; ++x)
        random[x] = static_cast<float>(RandomNormal({0, 0, 0, 0, static_cast<uint64_t>(x)}));
      guide = random;
    }
    float* score = scratch[plan.scores];
    for (int64_t i = 0; i < part.count; ++i) {
      score[i] = 0;
      if (config_.guide == Guide::kNone) continue;
      for (int64_t h = list * heads; h < (list + 1) * heads; ++h)
        score[i] += kernels::Dot(guide, in.q.at(part.begin + i, h), DType::kF32, d);
    }
    uint32_t* order = scratch[plan.order];
    OrderByScore(score, part.count, order);
    for (int64_t i = 0; i < part.count; ++i)
      to[i] = static_cast<int32_t>(part.begin + static_cast<int64_t>(order[i]));
  }

  // Keys [sink, end) by falling score; returns how many.
  int64_t RankHistory(const Plan& plan, const AttentionInputs& in, int64_t list, int64_t end,
                      WorkerScratch scratch, uint32_t* tokens, float* bias) const {
    const int64_t kv = list * HeadsOf(plan) / GroupSize(plan.shape);
    float* score = scratch[plan.scores];
    ScoreAllKeys(scratch[plan.mean], 1, in.k, kv, end, score, scratch[plan.keys],
                 scratch[plan.gemm]);
    if (config_.similarity == Similarity::kCosine) DivideByNorms(plan, in, kv, end, scratch);

    const int64_t units = CeilDiv(end - config_.sink, config_.unit);
    for (int64_t u = 0; u < units; ++u) {
      const int64_t lo = config_.sink + u * config_.unit;
      const int64_t hi = std::min(end, lo + config_.unit);
      float sum = 0;
      for (int64_t s = lo; s < hi; ++s) sum += score[s];
      score[u] = sum / static_cast<float>(hi - lo);
    }
    uint32_t* order = scratch[plan.order];
    OrderByScore(score, units, order);

    int64_t n = 0;
    float panel = 0;
    for (int64_t u = 0; u < units; ++u) {
      const int64_t lo = config_.sink + int64_t{order[u]} * config_.unit;
      const int64_t hi = std::min(end, lo + config_.unit);
      for (int64_t s = lo; s < hi; ++s, ++n) {
        if (n % kPanel == 0) panel = std::exp(score[order[u]] - score[order[0]]);
        tokens[n] = static_cast<uint32_t>(s);
        if (bias != nullptr) bias[n] = std::isnan(panel) ? 0.0f : panel;
      }
    }
    return n;
  }

  void DivideByNorms(const Plan& plan, const AttentionInputs& in, int64_t kv, int64_t n,
                     WorkerScratch scratch) const {
    const int64_t d = in.k.dim;
    const float* mean = scratch[plan.mean];
    float* key = scratch[plan.keys];
    const float query_norm = std::sqrt(kernels::Dot(mean, mean, DType::kF32, d));
    for (int64_t s = 0; s < n; ++s) {
      KeysAsFloat(in.k, kv, s, 1, key);
      const float norm = query_norm * std::sqrt(kernels::Dot(key, key, DType::kF32, d));
      scratch[plan.scores][s] = norm > 0 ? scratch[plan.scores][s] / norm : 0.0f;
    }
  }

  static constexpr int64_t kPanel = 64;
  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_S2O_S2O_H_
