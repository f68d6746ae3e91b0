#ifndef SLUICE_ROUTERS_ATTENTION_MEAN_POOL_MEAN_POOL_H_
#define SLUICE_ROUTERS_ATTENTION_MEAN_POOL_MEAN_POOL_H_
// Block selection by mean-pooled keys. Training-free; the baseline that learned block routers must
// beat.
//
//   SUM     mean of each block of keys, appended as keys arrive; of a tile's last block, of the
//           keys up to the tile's last query
//   SCORE   q . mean * scale, softmax over the visible blocks, then the largest over the tile's
//           queries and the group's heads
//   SELECT  the best k blocks, or the fewest that hold the share p; first and last are forced
//   ATTEND  the selected blocks, causal
//
// Cost of planning: queries * blocks * width per head, 1/block of QK^T. State: one mean a block and
// KV head.
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/routers/attention/common/select.h"
#include "sluice/routers/attention/common/sum.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class MeanPool {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "mean_pool", .full_budget = "k=2147483648", .small_budget = "block=16,k=4"};

  struct Config {
    int64_t block = 64;
    BlockBudget budget;
    bool pool_queries = false;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{16, 1024}, "keys per block");
      budget.VisitFields(v);
      v("pool_queries", pool_queries, Range<bool>{false, true},
        "score the mean query of a tile instead of every query");
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    BlockMeans::Layout means;
    Scratch<float> queries, last, scores, best, gemm;
    Scratch<std::byte> select;
  };

  static absl::StatusOr<MeanPool> Create(const Config& c) {
    SLUICE_RETURN_IF_ERROR(c.budget.Check());
    return MeanPool(c);
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    plan.means = BlockMeans::AddTo(plan, s.kv_heads, config_.block, s.head_dim);
    const int64_t blocks = plan.means.blocks;
    plan.queries = plan.AddScratch<float>(kTile * s.head_dim);
    plan.last = plan.AddScratch<float>(s.head_dim);
    plan.scores = plan.AddScratch<float>(kTile * blocks);
    plan.best = plan.AddScratch<float>(blocks);
    plan.gemm = AddGemmScratch(plan, s.head_dim);
    plan.select = AddSelectScratch(plan, blocks);
    plan.layout.max_tile = kTile;
    plan.layout.AddBranch({.rows = s.kv_heads * MaxTiles(s, kTile), .entry_slots = blocks});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    BlockMeans means(state, plan.means);
    means.Append(in.k, *ctx.executor);

    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch,
                            out.AddBranch({.encoding = Encoding::kBlocks, .block = config_.block}));
    ForEachRow(branch, plan, ctx, [&](int64_t kv, int64_t tile, WorkerScratch scratch) {
      const TileQueries q = branch.Queries(tile);
      const int64_t visible = q.last / config_.block + 1;
      float* best = scratch[plan.best];
      std::fill(best, best + visible, -HUGE_VALF);  // what only NaN speaks for is never chosen

      // What comes after the tile has no say, and chunks give the lists of one call.
      const bool whole = (q.last + 1) % config_.block == 0;
      float* last = scratch[plan.last];
      if (!whole) means.MeanBefore(in.k, kv, visible - 1, q.last + 1, last);

      const int64_t group = GroupSize(plan.shape);
      for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
        const int64_t rows = Queries(in, RowsOf(branch, tile), head, scratch[plan.queries]);
        float* scores = scratch[plan.scores];
        if (whole) {
          ScoreSoftmax(scratch[plan.queries], rows, means.At(kv, 0), visible, in.q.dim, scores,
                       scratch[plan.gemm]);
        } else {
          ScoreSoftmaxLast(scratch[plan.queries], rows, means.At(kv, 0), last, visible, in.q.dim,
                           scores, scratch[plan.gemm]);
        }
        MaxOverRows(scores, rows, visible, best);
      }

      const int64_t row = branch.row_of(kv, tile);
      branch.set_count(row, SelectBlocks(config_.budget, best, visible, q.first / config_.block,
                                         scratch[plan.select], branch.entries(row)));
    });
    return absl::OkStatus();
  }

 private:
  explicit MeanPool(const Config& c) : config_(c) {}

  // The scaled queries of a head, or their mean; returns how many rows that is.
  int64_t Queries(const AttentionInputs& in, TileRows rows, int64_t head, float* out) const {
    if (config_.pool_queries) {
      MeanQuery(in.q, rows, head, in.scale, out);
      return 1;
    }
    ScaledQueries(in.q, rows, head, in.scale, out);
    return rows.count;
  }

  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_MEAN_POOL_MEAN_POOL_H_
