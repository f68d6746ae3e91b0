#ifndef SLUICE_ROUTERS_ATTENTION_ORACLE_BLOCK_TOPK_ORACLE_BLOCK_TOPK_H_
#define SLUICE_ROUTERS_ATTENTION_ORACLE_BLOCK_TOPK_ORACLE_BLOCK_TOPK_H_
// The blocks that truly carry the most attention mass, found by computing dense attention: the
// upper anchor of every density curve. For measuring only; planning costs as much as it could ever
// save.
//
//   SCORE   softmax of q . k * scale over the visible keys, summed over a block's keys, the tile's
//           queries and the group's heads
//   SELECT  as mean_pool
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/routers/attention/common/select.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class OracleBlockTopK {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "oracle_block_topk", .full_budget = "k=2147483648", .small_budget = "block=16,k=4"};

  struct Config {
    int64_t block = 64;
    BlockBudget budget;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{16, 1024}, "keys per block");
      budget.VisitFields(v);
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    int64_t blocks = 0;
    Scratch<float> queries, keys, scores, mass, gemm;
    Scratch<std::byte> select;
  };

  static absl::StatusOr<OracleBlockTopK> Create(const Config& c) {
    SLUICE_RETURN_IF_ERROR(c.budget.Check());
    return OracleBlockTopK(c);
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    plan.blocks = CeilDiv(s.max_kv, config_.block);
    plan.queries = plan.AddScratch<float>(kRows * s.head_dim);
    plan.keys = plan.AddScratch<float>(kKeys * s.head_dim);
    plan.scores = plan.AddScratch<float>(kRows * s.max_kv);
    plan.mass = plan.AddScratch<float>(plan.blocks);
    plan.gemm = AddGemmScratch(plan, s.head_dim);
    plan.select = AddSelectScratch(plan, plan.blocks);
    plan.layout.max_tile = kTile;
    plan.layout.AddBranch({.rows = s.kv_heads * MaxTiles(s, kTile), .entry_slots = plan.blocks});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext& ctx,
                   PlanBuilder& out) const {
    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch,
                            out.AddBranch({.encoding = Encoding::kBlocks, .block = config_.block}));
    ForEachRow(branch, plan, ctx, [&](int64_t kv, int64_t tile, WorkerScratch scratch) {
      const TileQueries q = branch.Queries(tile);
      const TileRows rows = RowsOf(branch, tile);
      const int64_t visible = q.last / config_.block + 1;
      float* mass = scratch[plan.mass];
      std::fill(mass, mass + visible, 0.0f);

      const int64_t group = GroupSize(plan.shape);
      for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
        for (int64_t at = 0; at < rows.count; at += kRows) {
          const TileRows some = {rows.begin + at, std::min(kRows, rows.count - at)};
          AddMass(plan, in, kv, head, some, q.first + at, scratch);
        }
      }

      const int64_t row = branch.row_of(kv, tile);
      branch.set_count(row, SelectBlocks(config_.budget, mass, visible, q.first / config_.block,
                                         scratch[plan.select], branch.entries(row)));
    });
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kRows = 16;
  static constexpr int64_t kKeys = 64;
  explicit OracleBlockTopK(const Config& c) : config_(c) {}

  // Adds the probabilities of some queries, the first of which stands at `position`.
  void AddMass(const Plan& plan, const AttentionInputs& in, int64_t kv, int64_t head, TileRows rows,
               int64_t position, WorkerScratch scratch) const {
    const int64_t keys = position + rows.count;
    float* score = scratch[plan.scores];
    float* packed = scratch[plan.keys];
    ScaledQueries(in.q, rows, head, in.scale, scratch[plan.queries]);
    for (int64_t at = 0; at < keys; at += kKeys) {
      const int64_t n = std::min(kKeys, keys - at);
      KeysAsFloat(in.k, kv, at, n, packed);
      kernels::GemmNT(scratch[plan.queries], in.q.dim, packed, in.q.dim, rows.count, n, in.q.dim,
                      score + at, keys, scratch[plan.gemm]);
    }
    float* mass = scratch[plan.mass];
    for (int64_t i = 0; i < rows.count; ++i) {
      const int64_t seen = position + i + 1;
      kernels::Softmax(score + i * keys, seen);
      for (int64_t j = 0; j < seen; ++j) mass[j / config_.block] += score[i * keys + j];
    }
  }

  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_ORACLE_BLOCK_TOPK_ORACLE_BLOCK_TOPK_H_
