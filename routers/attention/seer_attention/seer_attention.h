#ifndef SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_H_
#define SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_H_
// The routing shape of SeerAttention. The gate's linear maps are the identity on the mean-pooled
// stream: a training-free substitute, to be named as such wherever it is measured. Deviations by
// choice: the diagonal block is always kept (upstream may drop it), dense tail rows are a switch.
//
//   PREP    queries and keys from before RoPE
//   SUM     mean of each block, turned to the block's start; of a tile's last block, of the keys up
//           to the tile's last query
//   SCORE   q . mean * scale, softmax over key blocks, one list a query head
//   SELECT  gate above tau, or as many blocks a row as a target density wants
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/routers/attention/common/select.h"
#include "sluice/routers/attention/common/sum.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class SeerAttention {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "seer_attention",
      .title = "SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs",
      .arxiv = "2410.13276",
      .reads_pre_rope = true,
      .full_budget = "tau=-1",
      .small_budget = "block=16,tau=0.2"};

  struct Config {
    int64_t block = 64;
    int64_t dense_tail = 0;
    double tau = 2e-3;
    double density = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{16, 64}, "queries and keys per block");
      v("tau", tau, Range<double>{-1, 1},
        "keep blocks with gate probability above this (when density = 0); below 0: all");
      v("density", density, Range<double>{0, 1},
        "target share of the prompt's causal blocks: a row keeps "
        "max(1, floor((1 - sqrt(1 - r)) * blocks))");
      v("dense_tail", dense_tail, Range<int64_t>{0, 1024},
        "last query blocks of a prompt that stay dense (upstream: 2)");
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    BlockMeans::Layout gates;
    Scratch<float> gate, last, scores, gemm;
    Scratch<std::byte> select;
  };

  static absl::StatusOr<SeerAttention> Create(const Config& c) { return SeerAttention(c); }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    plan.gates = BlockMeans::AddTo(plan, s.kv_heads, config_.block, s.head_dim);
    plan.gate = plan.AddScratch<float>(s.head_dim);
    plan.last = plan.AddScratch<float>(s.head_dim);
    plan.scores = plan.AddScratch<float>(plan.gates.blocks);
    plan.gemm = AddGemmScratch(plan, s.head_dim);
    plan.select = AddSelectScratch(plan, plan.gates.blocks);
    plan.layout.max_tile = config_.block;
    plan.layout.AddBranch(
        {.rows = s.heads * MaxTiles(s, config_.block), .entry_slots = plan.gates.blocks});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    const int64_t d = in.q.dim;
    BlockMeans gates(state, plan.gates);
    gates.Append(in.k_pre, *ctx.executor, [&](float* gate, int64_t block) {
      RotateTo(gate, d, block * config_.block, in.rope_base);
    });

    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.encoding = Encoding::kBlocks,
                                                                .scope = ListScope::kQueryHead,
                                                                .tile = config_.block,
                                                                .block = config_.block}));
    ForEachRow(branch, plan, ctx, [&](int64_t head, int64_t tile, WorkerScratch scratch) {
      const TileQueries q = branch.Queries(tile);
      const int64_t visible = q.last / config_.block + 1;
      const int64_t own = q.first / config_.block;
      float* gate = scratch[plan.gate];
      MeanQuery(in.q_pre, RowsOf(branch, tile), head, in.scale, gate);
      RotateTo(gate, d, own * config_.block, in.rope_base);

      // What comes after the tile has no say, and chunks give the lists of one call.
      const int64_t kv = head / GroupSize(plan.shape);
      float* scores = scratch[plan.scores];
      if ((q.last + 1) % config_.block == 0) {
        ScoreSoftmax(gate, 1, gates.At(kv, 0), visible, d, scores, scratch[plan.gemm]);
      } else {
        float* last = scratch[plan.last];
        gates.MeanBefore(in.k_pre, kv, visible - 1, q.last + 1, last);
        RotateTo(last, d, (visible - 1) * config_.block, in.rope_base);
        ScoreSoftmaxLast(gate, 1, gates.At(kv, 0), last, visible, d, scores, scratch[plan.gemm]);
      }

      const int64_t row = branch.row_of(head, tile);
      branch.set_count(row, SelectBlocks(Budget(in, q), scores, visible, own, scratch[plan.select],
                                         branch.entries(row)));
    });
    return absl::OkStatus();
  }

 private:
  explicit SeerAttention(const Config& c) : config_(c) {}

  // Density and tail are of the prompt, however it is fed; a host that does not say where it ends
  // is taken to be at its end.
  BlockBudget Budget(const AttentionInputs& in, const TileQueries& q) const {
    const int64_t blocks = CeilDiv(std::max(in.prompt_end, in.kv_len()), config_.block);
    const bool tail = q.last / config_.block >= blocks - config_.dense_tail;
    BlockBudget budget = {.k = 0, .p = 0, .tau = config_.tau, .sink = 0, .local = 1};
    if (tail) {
      budget.tau = -1;
    } else if (config_.density > 0) {
      const double share = 1 - std::sqrt(1 - config_.density);
      budget.k = std::max<int64_t>(1, static_cast<int64_t>(share * static_cast<double>(blocks)));
    }
    return budget;
  }

  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_H_
