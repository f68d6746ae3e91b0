#ifndef SLUICE_ROUTERS_ATTENTION_SALE_SALE_H_
#define SLUICE_ROUTERS_ATTENTION_SALE_SALE_H_
// SALE: skip the blocks whose estimated logits lie far below what the query has already seen.
// Training-free; thresholds may be calibrated a head.
//
//   ATTEND  the always-on set exactly: the first block and the diagonal region (stage 0)
//   PREP    keys and queries less their means over the call, in 4 bits with a scale a token
//   SCORE   S = (q - mean q) . (k - mean k) in 4 bits, plus the exact term mean q . (k - mean k)
//   SELECT  a block iff an element has exp(S - lse) > tau, with lse that of the always-on set
//   ATTEND  the selected blocks, resuming (stage 1)
//
// A subset's lse is never above that of all keys, so with exact products no key whose probability
// exceeds tau is lost. Planning costs queries * keys * width in 4 bits, as upstream does.
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/runtime/kernels/int_score/int_score.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Sale {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "sale",
      .title =
          "SALE: Low-bit Estimation for Efficient Sparse Attention in Long-context LLM "
          "Prefilling",
      .arxiv = "2505.24179",
      .chunk_invariant = false,  // the means are of the call
      .stages = 2,
      .full_budget = "tau=0,dense_below=0,dense_until=0",
      .small_budget = "block=16,tile=16,local=16,align=16,tau=0.9,dense_until=0"};

  static constexpr kernels::KeyBits kInt4 = kernels::KeyBits::k4;
  enum class Products : uint8_t { kInt4, kExact };
  struct Config {
    int64_t block = 32;
    int64_t tile = 64;
    int64_t sink = 1;
    int64_t local = 128;
    int64_t align = 128;
    double tau = 0.008;
    std::vector<double> taus;
    double dense_below = 1e-5;
    int64_t dense_until = 1024;
    Products products = Products::kInt4;
    bool smooth_k = true;
    bool smooth_q = true;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{16, 256}, "keys per block");
      v("tile", tile, Range<int64_t>{1, 64}, "queries that share a list");
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first blocks always on");
      v("local", local, Range<int64_t>{1, 1 << 20},
        "least keys of the diagonal region, the tile's own included");
      v("align", align, Range<int64_t>{1, 1 << 20},
        "the region grows until the keys before it are a multiple of this, itself one of block");
      v("tau", tau, Range<double>{0, 1}, "keep blocks with a relative attention score above this");
      v("taus", taus, Range<double>{0, 1}, "calibrated thresholds, one a query head, for tau");
      v("dense_below", dense_below, Range<double>{0, 1},
        "heads with a threshold below this keep every block without scoring; 0: off");
      v("dense_until", dense_until, Range<int64_t>{0, kEverything},
        "prompts of at most so many tokens are dense; 0: off (upstream counts the call's queries)");
      v("products", products, Choices{"int4", "exact"}, "arithmetic of the estimate");
      v("smooth_k", smooth_k, Range<bool>{false, true}, "subtract the mean key before rounding");
      v("smooth_q", smooth_q, Range<bool>{false, true},
        "subtract the mean query before rounding, and add its part exactly");
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    int64_t blocks = 0;
    Shared<float> key_mean, query_mean;  // [kv_heads, d], [heads, d] times scale
    Shared<uint8_t> key4;                // [kv_heads], packed
    Shared<float> key_scale;             // [kv_heads, max_kv]
    Shared<float> query_term;            // [heads, max_kv]: mean query . smoothed key
    Scratch<float> queries, query_scale, floor, keys, scores, gemm;
    Scratch<int8_t> query4, key;
    Scratch<int32_t> dots;
    int64_t head_bytes() const { return kernels::IntKeyBytes(kInt4, shape.max_kv, shape.head_dim); }
  };

  static absl::StatusOr<Sale> Create(const Config& c) {
    if (c.align % c.block != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("align=", c.align, " is not a multiple of block=", c.block));
    }
    return Sale(c);
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    if (!config_.taus.empty() && std::ssize(config_.taus) != s.heads) {
      return absl::InvalidArgumentError(
          absl::StrCat("taus has ", config_.taus.size(), " thresholds for ", s.heads, " heads"));
    }
    Plan plan(s);
    const int64_t d = s.head_dim;
    plan.blocks = CeilDiv(s.max_kv, config_.block);
    plan.key_mean = plan.AddShared<float>(s.kv_heads * d);
    plan.query_mean = plan.AddShared<float>(s.heads * d);
    plan.query_term = plan.AddShared<float>(s.heads * s.max_kv);
    const int64_t quantised = config_.products == Products::kInt4 ? s.kv_heads : 0;
    plan.key4 = plan.AddShared<uint8_t>(quantised * plan.head_bytes());
    plan.key_scale = plan.AddShared<float>(quantised * s.max_kv);
    plan.queries = plan.AddScratch<float>(config_.tile * d);
    plan.query4 = plan.AddScratch<int8_t>(config_.tile * kernels::IntWidth(kInt4, d));
    plan.key = plan.AddScratch<int8_t>(d);
    plan.dots = plan.AddScratch<int32_t>(config_.tile * config_.block);
    plan.query_scale = plan.AddScratch<float>(config_.tile);
    plan.floor = plan.AddScratch<float>(config_.tile);
    plan.keys = plan.AddScratch<float>(config_.block * d);
    plan.scores = plan.AddScratch<float>(config_.tile * config_.block);
    plan.gemm = AddGemmScratch(plan, d);
    plan.layout.max_tile = config_.tile;
    plan.layout.AddBranch(
        {.rows = s.heads * MaxTiles(s, config_.tile), .entry_slots = plan.blocks});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext& ctx,
                   PlanBuilder& out) const {
    Begin(plan.shape, in, out);
    const bool first = in.stage == 0;
    SLUICE_ASSIGN_OR_RETURN(
        BranchWriter branch,
        out.AddBranch({.encoding = Encoding::kBlocks,
                       .scope = first ? ListScope::kAllHeads : ListScope::kQueryHead,
                       .tile = config_.tile,
                       .block = config_.block}));
    const bool dense = std::max(in.kv_len(), in.prompt_end) <= config_.dense_until;
    if (first) {
      for (int64_t tile = 0; tile < branch.num_tiles(); ++tile)
        branch.set_count(tile, AlwaysOn(branch.Queries(tile), dense, branch.entries(tile)));
      return absl::OkStatus();
    }
    if (dense) return absl::OkStatus();  // stage 0 was all

    PrepareKeys(plan, in, ctx);
    PrepareQueries(plan, in, ctx);
    ForEachRow(branch, plan, ctx, [&](int64_t head, int64_t tile, WorkerScratch scratch) {
      const int64_t row = branch.row_of(head, tile);
      const TileRows rows = RowsOf(branch, tile);
      const int64_t end = DiagonalBlock(branch.Queries(tile));
      PrepareTile(plan, in, ctx, head, rows, scratch);
      PlanEntry* entries = branch.entries(row);
      int64_t n = 0;
      for (int64_t b = config_.sink; b < end; ++b) {
        if (Tau(head) < config_.dense_below || Exceeds(plan, in, ctx, head, rows, b, scratch))
          entries[n++] = ExactEntry(b, 1, MaskClass::kFull);
      }
      branch.set_count(row, n);
    });
    return absl::OkStatus();
  }

 private:
  explicit Sale(const Config& c) : config_(c) {}
  double Tau(int64_t head) const { return config_.taus.empty() ? config_.tau : config_.taus[head]; }

  // The first block of the diagonal region of a tile.
  int64_t DiagonalBlock(const TileQueries& q) const {
    const int64_t rest = std::max<int64_t>(0, q.last + 1 - config_.local);
    return std::min(rest / config_.align * config_.align, q.first) / config_.block;
  }

  // Entries of stage 0.
  int64_t AlwaysOn(const TileQueries& q, bool dense, PlanEntry* out) const {
    const int64_t visible = q.last / config_.block + 1;
    const int64_t diagonal = dense ? 0 : DiagonalBlock(q);
    const int64_t sink = std::min(config_.sink, diagonal);
    int64_t n = 0;
    if (sink > 0) out[n++] = ExactEntry(0, sink, MaskClass::kCausal, true);
    out[n++] = ExactEntry(diagonal, visible - diagonal, MaskClass::kCausal, true);
    return n;
  }

  float* KeyMean(const Plan& plan, const RunContext& ctx, int64_t kv) const {
    return plan.Get(ctx, plan.key_mean) + kv * plan.shape.head_dim;
  }
  // Keys [begin, begin + n) less their mean.
  void SmoothedKeys(const Plan& plan, const AttentionInputs& in, const RunContext& ctx, int64_t kv,
                    int64_t begin, int64_t n, float* out) const {
    KeysAsFloat(in.k, kv, begin, n, out);
    SubtractMean(out, n, in.k.dim, KeyMean(plan, ctx, kv));
  }

  void PrepareKeys(const Plan& plan, const AttentionInputs& in, const RunContext& ctx) const {
    const int64_t d = in.k.dim;
    ctx.executor->ParallelFor(plan.shape.kv_heads, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t kv = begin; kv < end; ++kv) {
        float* mean = KeyMean(plan, ctx, kv);
        std::fill(mean, mean + d, 0.0f);
        if (!config_.smooth_k) continue;
        kernels::Pool(kernels::PoolKind::kMean, in.k.at(0, kv), in.k.dtype, in.k.row_stride,
                      in.kv_len(), d, mean);
      }
    });
    if (config_.products == Products::kExact) return;

    float* scale = plan.Get(ctx, plan.key_scale);
    const int64_t keys = in.kv_len();
    ctx.executor->ParallelFor(
        plan.shape.kv_heads * keys, 64, [&](int64_t begin, int64_t end, int w) {
          const WorkerScratch scratch = plan.Worker(ctx, w);
          for (int64_t i = begin; i < end; ++i) {
            const int64_t kv = i / keys;
            const int64_t at = i % keys;
            SmoothedKeys(plan, in, ctx, kv, at, 1, scratch[plan.keys]);
            scale[kv * plan.shape.max_kv + at] = kernels::QuantiseInt(
                scratch[plan.keys], d, kernels::IntLimit(kInt4), scratch[plan.key]);
            kernels::PackIntKey(kInt4, scratch[plan.key], d, at,
                                plan.Get(ctx, plan.key4) + kv * plan.head_bytes());
          }
        });
  }

  // The mean query of each head and its products with all smoothed keys.
  void PrepareQueries(const Plan& plan, const AttentionInputs& in, const RunContext& ctx) const {
    const int64_t d = in.q.dim;
    const int64_t keys = in.kv_len();
    const int64_t batches = CeilDiv(keys, config_.block);
    ctx.executor->ParallelFor(plan.shape.heads, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t head = begin; head < end; ++head) {
        float* mean = plan.Get(ctx, plan.query_mean) + head * d;
        std::fill(mean, mean + d, 0.0f);
        if (config_.smooth_q) MeanQuery(in.q, {0, in.q.rows}, head, in.scale, mean);
      }
    });
    ctx.executor->ParallelFor(
        plan.shape.heads * batches, 8, [&](int64_t begin, int64_t end, int w) {
          const WorkerScratch scratch = plan.Worker(ctx, w);
          for (int64_t i = begin; i < end; ++i) {
            const int64_t head = i / batches;
            const int64_t from = i % batches * config_.block;
            const int64_t n = std::min(config_.block, keys - from);
            SmoothedKeys(plan, in, ctx, head / GroupSize(plan.shape), from, n, scratch[plan.keys]);
            ScoreDot(plan.Get(ctx, plan.query_mean) + head * d, 1, scratch[plan.keys], n, d,
                     plan.Get(ctx, plan.query_term) + head * plan.shape.max_kv + from,
                     scratch[plan.gemm]);
          }
        });
  }

  // Smoothed queries of a tile, and what its rows' smoothed logits must exceed: lse + ln tau, less
  // the logit of the mean key.
  void PrepareTile(const Plan& plan, const AttentionInputs& in, const RunContext& ctx, int64_t head,
                   TileRows rows, WorkerScratch scratch) const {
    const int64_t d = in.q.dim;
    const float* key_mean = KeyMean(plan, ctx, head / GroupSize(plan.shape));
    const float log_tau = static_cast<float>(std::log(Tau(head)));
    float* q = scratch[plan.queries];
    ScaledQueries(in.q, rows, head, in.scale, q);
    for (int64_t i = 0; i < rows.count; ++i) {
      float shift = 0;
      for (int64_t x = 0; x < d; ++x) shift += q[i * d + x] * key_mean[x];
      scratch[plan.floor][i] = in.attended_lse.row(rows.begin + i)[head] + log_tau - shift;
    }
    SubtractMean(q, rows.count, d, plan.Get(ctx, plan.query_mean) + head * d);
    if (config_.products == Products::kExact) return;
    const int64_t width = kernels::IntWidth(kInt4, d);
    int8_t* rounded = scratch[plan.query4];
    std::memset(rounded, 0, rows.count * width);
    for (int64_t i = 0; i < rows.count; ++i)
      scratch[plan.query_scale][i] =
          kernels::QuantiseInt(q + i * d, d, kernels::IntLimit(kInt4), rounded + i * width);
  }

  // plan.scores [rows, block] of a block in 4 bits.
  void ScoreRounded(const Plan& plan, const RunContext& ctx, int64_t kv, int64_t b, int64_t rows,
                    WorkerScratch scratch) const {
    const int64_t n = config_.block;
    kernels::IntDots(kInt4, scratch[plan.query4], rows, plan.shape.head_dim,
                     plan.Get(ctx, plan.key4) + kv * plan.head_bytes(), b * n, n,
                     scratch[plan.dots]);
    const float* key_scale = plan.Get(ctx, plan.key_scale) + kv * plan.shape.max_kv + b * n;
    for (int64_t i = 0; i < rows; ++i) {
      const float query_scale = scratch[plan.query_scale][i];
      for (int64_t j = 0; j < n; ++j)
        scratch[plan.scores][i * n + j] =
            query_scale * key_scale[j] * static_cast<float>(scratch[plan.dots][i * n + j]);
    }
  }

  // Whether any element of a block exceeds its row's floor. NaN exceeds nothing.
  bool Exceeds(const Plan& plan, const AttentionInputs& in, const RunContext& ctx, int64_t head,
               TileRows rows, int64_t b, WorkerScratch scratch) const {
    const int64_t d = in.q.dim;
    const int64_t n = config_.block;
    const int64_t kv = head / GroupSize(plan.shape);
    float* scores = scratch[plan.scores];
    if (config_.products == Products::kExact) {
      SmoothedKeys(plan, in, ctx, kv, b * n, n, scratch[plan.keys]);
      ScoreDot(scratch[plan.queries], rows.count, scratch[plan.keys], n, d, scores,
               scratch[plan.gemm]);
    } else {
      ScoreRounded(plan, ctx, kv, b, rows.count, scratch);
    }
    const float* term = plan.Get(ctx, plan.query_term) + head * plan.shape.max_kv + b * n;
    for (int64_t i = 0; i < rows.count; ++i) {
      const float floor = scratch[plan.floor][i];
      for (int64_t j = 0; j < n; ++j) {
        if (scores[i * n + j] + term[j] > floor) return true;
      }
    }
    return false;
  }

  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SALE_SALE_H_
