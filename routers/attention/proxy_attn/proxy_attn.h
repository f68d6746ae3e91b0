#ifndef SLUICE_ROUTERS_ATTENTION_PROXY_ATTN_PROXY_ATTN_H_
#define SLUICE_ROUTERS_ATTENTION_PROXY_ATTN_PROXY_ATTN_H_
// ProxyAttn: one representative head ranks the blocks for a whole group of heads, and every head
// takes as much of the ranking as its own last queries ask for. Training-free, for prefill.
//
//   PREP    proxies: the mean query and the mean key of a group of heads
//   SUM     the first of every `stride` queries of a tile and of every `stride` keys
//   SCORE   softmax of a proxy's products, the largest probability of a tile's queries and a
//           block's keys: the ranking of the group
//   SELECT  of each head, the share of blocks that its last queries need to hold gamma of their
//           attention; that share of every tile's blocks, from the top of the ranking
//   ATTEND  the selected blocks, causal; lists of a group's heads are prefixes of one another
//
// Known at second hand, and therefore inferred: blocks and tiles of 128; that the first block and
// the tile's own are forced, and beside the budget (inside it they eat the budgets of short rows);
// that a share counts the blocks that the tile sees; that the least budget of 2,048 keys is each
// tile's (min_budget_of=head: that of the last queries, whose share the others take); and that
// calls of few queries, decode above all, are dense. A block's attention is summed where the source
// averages it, which differs only in a last block that is not full. The last queries are the
// call's last `tile`, so lists depend on the call.
//
// Ties go to the first block. A query with a NaN among its products has no say; a block that no
// query scored is kept only where it is forced. Planning costs groups / heads / (2 * stride^2) of
// QK^T and heads * tile * keys products. Nothing is kept between calls.
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/routers/attention/common/select.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class ProxyAttn {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "proxy_attn",
      .title = "ProxyAttn: Guided Sparse Attention via Representative Heads",
      .arxiv = "2509.24745",
      .chunk_invariant = false,  // budgets are the last queries', and tiles have 128 of them
      .full_budget = "gamma=1",
      .small_budget = "block=16,tile=16,gamma=0.3,min_budget=0"};

  enum class Floor : uint8_t { kTile, kHead };
  struct Config {
    int64_t groups = 1;
    int64_t block = 128;
    int64_t tile = 128;
    int64_t stride = 4;
    double gamma = 0.95;
    int64_t min_budget = 2048;
    Floor min_budget_of = Floor::kTile;
    int64_t sink = 1;
    int64_t local = 1;
    bool count_forced = false;
    int64_t least_queries = 16;
    template <class V>
    void VisitFields(V&& v) {
      v("groups", groups, Range<int64_t>{1, 1 << 16},
        "proxies, each of as many neighbouring KV heads; a divisor of their number");
      v("block", block, Range<int64_t>{1, 1024}, "keys per block, a multiple of stride");
      v("tile", tile, Range<int64_t>{1, 1024}, "queries that share a list");
      v("stride", stride, Range<int64_t>{1, 64}, "of queries and keys, the first is looked at");
      v("gamma", gamma, Range<double>{0, 1},
        "share of a head's last queries' attention that its budget holds");
      v("min_budget", min_budget, Range<int64_t>{0, kEverything}, "keys that a list has at least");
      v("min_budget_of", min_budget_of, Choices{"tile", "head"},
        "whose budget is never less: every tile's, or the last queries', whose share tiles take");
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first blocks always kept");
      v("local", local, Range<int64_t>{1, 1 << 20}, "last blocks always kept, own block included");
      v("force_counts_in_budget", count_forced, Range<bool>{false, true},
        "whether forced blocks use up the budget");
      v("least_queries", least_queries, Range<int64_t>{1, 1024},
        "calls of fewer queries are dense (inferred); 1: none");
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    Shared<float> proxy_keys;  // [groups, keys / stride, d]
    Shared<int64_t> kept;      // [heads]: blocks that the last queries need
    Scratch<float> queries, keys, own_scores, proxy_scores, mass, gemm;
    Scratch<uint32_t> ranking;
    Scratch<std::byte> select;
  };

  static absl::StatusOr<ProxyAttn> Create(const Config& c) {
    if (c.block % c.stride != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("block=", c.block, " is not a multiple of stride=", c.stride));
    }
    return ProxyAttn(c);
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    if (s.kv_heads % config_.groups != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "groups=", config_.groups, " does not divide the model's ", s.kv_heads, " KV heads"));
    }
    Plan plan(s);
    const int64_t blocks = CeilDiv(s.max_kv, config_.block);
    const int64_t picked = CeilDiv(s.max_kv, config_.stride);
    const int64_t rows = std::max(kRows, CeilDiv(config_.tile, config_.stride));
    plan.proxy_keys = plan.AddShared<float>(config_.groups * picked * s.head_dim);
    plan.kept = plan.AddShared<int64_t>(s.heads);
    plan.queries = plan.AddScratch<float>(rows * s.head_dim);
    plan.keys = plan.AddScratch<float>(kKeyBatch * s.head_dim);
    plan.own_scores = plan.AddScratch<float>(kRows * s.max_kv);
    plan.proxy_scores = plan.AddScratch<float>(rows * picked);
    plan.mass = plan.AddScratch<float>(blocks);
    plan.gemm = AddGemmScratch(plan, s.head_dim);
    plan.ranking = plan.AddScratch<uint32_t>(blocks);
    plan.select = AddSelectScratch(plan, blocks);
    plan.layout.max_tile = config_.tile;
    const int64_t tiles = MaxTiles(s, config_.tile);
    plan.layout.AddBranch(
        {.rows = s.kv_heads * tiles, .token_slots = blocks, .prefix_slots = s.heads * tiles});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext& ctx,
                   PlanBuilder& out) const {
    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.encoding = Encoding::kRankedPrefix,
                                                                .tile = config_.tile,
                                                                .block = config_.block}));
    const bool dense = in.q.rows < config_.least_queries;
    if (!dense) {
      PickKeys(plan, in, ctx);
      ctx.executor->ParallelFor(in.q.heads, 1, [&](int64_t begin, int64_t end, int w) {
        for (int64_t head = begin; head < end; ++head)
          plan.Get(ctx, plan.kept)[head] = Needed(plan, in, head, plan.Worker(ctx, w));
      });
    }
    const int64_t tiles = branch.num_tiles();
    ctx.executor->ParallelFor(config_.groups * tiles, 1, [&](int64_t begin, int64_t end, int w) {
      for (int64_t i = begin; i < end; ++i)
        RouteTile(plan, in, ctx, i / tiles, i % tiles, dense, plan.Worker(ctx, w), branch);
    });
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kRows = 16;  // queries whose attention is looked at together

  explicit ProxyAttn(const Config& c) : config_(c) {}

  // proxy_keys [groups, picked, d]: means over a group's KV heads of the first of every `stride`
  // keys.
  void PickKeys(const Plan& plan, const AttentionInputs& in, const RunContext& ctx) const {
    const int64_t d = in.k.dim;
    const int64_t picked = CeilDiv(in.kv_len(), config_.stride);
    const int64_t heads = in.k.heads / config_.groups;
    ctx.executor->ParallelFor(config_.groups * picked, 64, [&](int64_t begin, int64_t end, int w) {
      float* key = plan.Worker(ctx, w)[plan.keys];
      for (int64_t i = begin; i < end; ++i) {
        float* mean = plan.Get(ctx, plan.proxy_keys) + i * d;
        std::fill(mean, mean + d, 0.0f);
        for (int64_t kv = i / picked * heads; kv < (i / picked + 1) * heads; ++kv) {
          KeysAsFloat(in.k, kv, i % picked * config_.stride, 1, key);
          for (int64_t x = 0; x < d; ++x) mean[x] += key[x] / static_cast<float>(heads);
        }
      }
    });
  }

  // How many blocks hold gamma of the attention of a head's last queries.
  int64_t Needed(const Plan& plan, const AttentionInputs& in, int64_t head,
                 WorkerScratch scratch) const {
    const int64_t kv = head / GroupSize(plan.shape);
    const int64_t blocks = CeilDiv(in.kv_len(), config_.block);
    float* mass = scratch[plan.mass];
    std::fill(mass, mass + blocks, 0.0f);
    for (int64_t i = std::max<int64_t>(0, in.q.rows - config_.tile); i < in.q.rows; i += kRows) {
      const TileRows rows = {i, std::min(kRows, in.q.rows - i)};
      const int64_t keys = in.q_begin + rows.begin + rows.count;
      float* score = scratch[plan.own_scores];
      ScaledQueries(in.q, rows, head, in.scale, scratch[plan.queries]);
      ScoreAllKeys(scratch[plan.queries], rows.count, in.k, kv, keys, score, scratch[plan.keys],
                   scratch[plan.gemm]);
      for (int64_t r = 0; r < rows.count; ++r) {
        float* p = score + r * keys;
        const int64_t seen = in.q_begin + i + r + 1;
        if (std::isnan(kernels::Softmax(p, seen))) continue;
        for (int64_t s = 0; s < seen; ++s) mass[s / config_.block] += p[s];
      }
    }
    uint32_t* ids = reinterpret_cast<uint32_t*>(scratch[plan.select]);
    void* rest = ids + CeilDiv(blocks, 16) * 16;
    const int64_t kept = kernels::TopP(mass, blocks, static_cast<float>(config_.gamma), ids, rest);
    if (config_.min_budget_of == Floor::kTile) return kept;
    return std::min(blocks, std::max(kept, LeastBlocks()));
  }
  int64_t LeastBlocks() const { return CeilDiv(config_.min_budget, config_.block); }

  // Writes the ranking and the prefixes of a group's heads.
  void RouteTile(const Plan& plan, const AttentionInputs& in, const RunContext& ctx, int64_t proxy,
                 int64_t tile, bool dense, WorkerScratch scratch, BranchWriter branch) const {
    const TileQueries q = branch.Queries(tile);
    const int64_t visible = q.last / config_.block + 1;
    const int64_t own = q.first / config_.block;
    const BlockBudget guards = {.sink = config_.sink, .local = config_.local};
    uint32_t* ranking = scratch[plan.ranking];
    int64_t forced = 0;
    for (int64_t b = 0; b < visible; ++b) {
      if (dense || guards.Forces(b, own)) ranking[forced++] = static_cast<uint32_t>(b);
    }
    int64_t ranked = forced;
    if (!dense) {
      ScoreBlocks(plan, in, ctx, proxy, RowsOf(branch, tile), visible, scratch);
      const float* score = scratch[plan.mass];
      for (int64_t b = 0; b < visible; ++b) {
        if (!guards.Forces(b, own) && score[b] >= 0) ranking[ranked++] = static_cast<uint32_t>(b);
      }
      std::sort(ranking + forced, ranking + ranked, [score](uint32_t x, uint32_t y) {
        return score[x] != score[y] ? score[x] > score[y] : x < y;
      });
    }

    const int64_t group = GroupSize(plan.shape);
    const int64_t kv_heads = in.k.heads / config_.groups;
    const int64_t* kept = plan.Get(ctx, plan.kept);
    for (int64_t kv = proxy * kv_heads; kv < (proxy + 1) * kv_heads; ++kv) {
      int64_t most = 0;
      for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
        int64_t n = ranked;
        if (!dense) n = std::min(ranked, Prefix(in, kept[head], visible, forced));
        branch.prefix()[head * branch.num_tiles() + tile] = static_cast<uint32_t>(n);
        most = std::max(most, n);
      }
      const int64_t row = branch.row_of(kv, tile);
      std::copy(ranking, ranking + most, branch.tokens(row));
      branch.set_count(row, most);
    }
  }

  // How much of a ranking that begins with the forced blocks a head takes.
  int64_t Prefix(const AttentionInputs& in, int64_t kept, int64_t visible, int64_t forced) const {
    const int64_t all = CeilDiv(in.kv_len(), config_.block);
    int64_t budget = CeilDiv(kept * visible, all);
    if (config_.min_budget_of == Floor::kTile) budget = std::max(budget, LeastBlocks());
    return config_.count_forced ? std::max(budget, forced) : budget + forced;
  }

  // mass [visible]: the largest probability that the proxy's queries give a key of each block; -1
  // where none of them says anything.
  void ScoreBlocks(const Plan& plan, const AttentionInputs& in, const RunContext& ctx,
                   int64_t proxy, TileRows rows, int64_t visible, WorkerScratch scratch) const {
    const int64_t d = in.q.dim;
    const int64_t stride = config_.stride;
    const int64_t n = CeilDiv(rows.count, stride);
    MeanQueries(in, proxy, rows, scratch[plan.queries]);

    const int64_t picked = CeilDiv(in.kv_len(), stride);
    const int64_t reached = (in.q_begin + rows.begin + (n - 1) * stride) / stride + 1;
    float* score = scratch[plan.proxy_scores];
    ScoreDot(scratch[plan.queries], n, plan.Get(ctx, plan.proxy_keys) + proxy * picked * d, reached,
             d, score, scratch[plan.gemm]);

    float* most = scratch[plan.mass];
    std::fill(most, most + visible, -1.0f);
    for (int64_t i = 0; i < n; ++i) {
      float* p = score + i * reached;
      const int64_t seen = (in.q_begin + rows.begin + i * stride) / stride + 1;
      if (std::isnan(kernels::Softmax(p, seen))) continue;
      for (int64_t s = 0; s < seen; ++s) {
        float& best = most[s * stride / config_.block];
        best = std::max(best, p[s]);
      }
    }
  }
  // out [rows / stride, d]: scaled means over a group's query heads.
  void MeanQueries(const AttentionInputs& in, int64_t proxy, TileRows rows, float* out) const {
    const int64_t d = in.q.dim;
    const int64_t heads = in.q.heads / config_.groups;
    const float share = in.scale / static_cast<float>(heads);
    for (int64_t i = 0; i < rows.count; i += config_.stride) {
      std::fill(out, out + d, 0.0f);
      for (int64_t head = proxy * heads; head < (proxy + 1) * heads; ++head) {
        const float* q = in.q.at(rows.begin + i, head);
        for (int64_t x = 0; x < d; ++x) out[x] += q[x] * share;
      }
      out += d;
    }
  }

  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_PROXY_ATTN_PROXY_ATTN_H_
