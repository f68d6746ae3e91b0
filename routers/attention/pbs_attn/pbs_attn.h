#ifndef SLUICE_ROUTERS_ATTENTION_PBS_ATTN_PBS_ATTN_H_
#define SLUICE_ROUTERS_ATTENTION_PBS_ATTN_PBS_ATTN_H_
// PBS-Attn: keys are sorted inside segments, so that the important ones of a segment share blocks,
// and blocks are then selected by their means. Training-free.
//
//   SCORE   each key by the mean probability that the call's last query block gives it, unmasked
//   PERM    each complete segment's keys by falling score; queries and the remainder keep their
//           order
//   SUM     mean of each permuted block, mean query of each tile
//   SCORE   mean query . mean key * scale, softmax over the blocks of earlier segments
//   SELECT  the fewest blocks that hold the share p, and the block of key 0 beside them
//   ATTEND  the selected blocks; the own segment always, causal by the keys' original places
//
// A call of several prompt chunks is permuted by its last query block, so lists depend on how a
// prompt is cut. Planning costs block * keys * width a permutation, a sort of every segment, and
// (queries / block) * (keys / block) * width a head.
#include "sluice/routers/attention/common/perm.h"
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/runtime/kernels/top_p/top_p.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class PbsAttn {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "pbs_attn",
      .title = "Sparser Block-Sparse Attention via Token Permutation",
      .arxiv = "2510.21270",
      .chunk_invariant = false,  // the last query block of the call orders the keys
      .full_budget = "p=1",
      .small_budget = "block=16,segment=32,p=0.3"};

  enum class Permute : uint8_t { kHead, kKvHead, kNone };
  struct Config {
    int64_t block = 128;
    int64_t segment = 256;
    double p = 0.9;
    Permute permute = Permute::kHead;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{16, 256}, "queries and keys per block");
      v("segment", segment, Range<int64_t>{16, 1 << 20},
        "keys that are sorted among themselves, a multiple of block");
      v("p", p, Range<double>{0, 1}, "share of the earlier blocks' probability kept");
      v("permute", permute, Choices{"head", "kv", "none"},
        "who shares an order of the keys: a query head (the paper), the heads of a KV head by the "
        "mean of their scores (its appendix; the mean is inferred), or nobody sorts");
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    int64_t orders = 0;  // permutations, or KV heads where nobody sorts
    int64_t blocks = 0;
    Shared<float> means;   // [orders, blocks, d] of permuted blocks
    Shared<int64_t> sink;  // [orders]: the block of key 0
    Scratch<float> queries, keys, scores, mass, gemm;
    Scratch<uint32_t> picked;
    Scratch<std::byte> top;
  };

  static absl::StatusOr<PbsAttn> Create(const Config& c) {
    if (c.segment % c.block != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("segment=", c.segment, " is not a multiple of block=", c.block));
    }
    return PbsAttn(c);
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    const int64_t d = s.head_dim;
    plan.orders = config_.permute == Permute::kHead ? s.heads : s.kv_heads;
    plan.blocks = CeilDiv(s.max_kv, config_.block);
    plan.means = plan.AddShared<float>(plan.orders * plan.blocks * d);
    plan.sink = plan.AddShared<int64_t>(plan.orders);
    plan.queries = plan.AddScratch<float>(std::max(kRows, config_.block) * d);
    plan.keys = plan.AddScratch<float>(std::max(kKeyBatch, config_.block) * d);
    plan.scores = plan.AddScratch<float>(kRows * s.max_kv);
    plan.mass = plan.AddScratch<float>(s.max_kv);
    plan.picked = plan.AddScratch<uint32_t>(std::max(plan.blocks, config_.segment));
    plan.gemm = AddGemmScratch(plan, d);
    plan.top = plan.AddScratch<std::byte>(kernels::TopPScratchBytes(plan.blocks));
    plan.layout.max_tile = config_.block;
    plan.layout.AddBranch(
        {.rows = s.heads * MaxTiles(s, config_.block), .entry_slots = plan.blocks});
    plan.layout.perm_slots = config_.permute == Permute::kNone ? 0 : plan.orders * s.max_kv;
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext& ctx,
                   PlanBuilder& out) const {
    Begin(plan.shape, in, out);
    uint32_t* perm = nullptr;
    if (config_.permute != Permute::kNone) {
      perm = out.UsePermutation(config_.permute == Permute::kHead ? ListScope::kQueryHead
                                                                  : ListScope::kKvHead);
    }
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.encoding = Encoding::kBlocks,
                                                                .scope = ListScope::kQueryHead,
                                                                .tile = config_.block,
                                                                .block = config_.block}));
    ctx.executor->ParallelFor(plan.orders, 1, [&](int64_t begin, int64_t end, int w) {
      for (int64_t order = begin; order < end; ++order) {
        uint32_t* own = perm == nullptr ? nullptr : perm + order * in.kv_len();
        if (own != nullptr) SortSegments(plan, in, order, plan.Worker(ctx, w), own);
        plan.Get(ctx, plan.sink)[order] = own == nullptr ? 0 : BlockOfFirstKey(own, in.kv_len());
      }
    });
    PoolBlocks(plan, in, ctx, perm);

    ForEachRow(branch, plan, ctx, [&](int64_t head, int64_t tile, WorkerScratch scratch) {
      const int64_t row = branch.row_of(head, tile);
      const TileQueries q = branch.Queries(tile);
      const int64_t own = q.first / config_.segment * config_.segment / config_.block;
      const int64_t last = (q.last / config_.segment + 1) * config_.segment;
      const int64_t end = CeilDiv(std::min(last, in.kv_len()), config_.block);
      MeanQuery(in.q, RowsOf(branch, tile), head, in.scale, scratch[plan.queries]);

      PlanEntry* entries = branch.entries(row);
      int64_t n = SelectEarlier(plan, ctx, head, own, in.q.dim, scratch, entries);
      entries[n++] =
          ExactEntry(own, end - own, perm == nullptr ? MaskClass::kCausal : MaskClass::kPermCausal,
                     /*forced=*/true);
      branch.set_count(row, n);
    });
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kRows = 16;
  explicit PbsAttn(const Config& c) : config_(c) {}

  // Query heads that share an order.
  int64_t HeadsOf(const Plan& plan) const { return plan.shape.heads / plan.orders; }
  int64_t KvOf(const Plan& plan, int64_t order) const {
    return order * HeadsOf(plan) / GroupSize(plan.shape);
  }

  // perm [kv_len]: the keys of each complete segment by falling score, the rest as they are.
  void SortSegments(const Plan& plan, const AttentionInputs& in, int64_t order,
                    WorkerScratch scratch, uint32_t* perm) const {
    const int64_t sorted = in.kv_len() / config_.segment * config_.segment;
    float* mass = scratch[plan.mass];
    std::fill(mass, mass + sorted, 0.0f);
    for (int64_t h = order * HeadsOf(plan); h < (order + 1) * HeadsOf(plan); ++h)
      AddLastBlockMass(plan, in, h, sorted, scratch);

    for (int64_t start = 0; start < sorted; start += config_.segment) {
      OrderByScore(mass + start, config_.segment, perm + start);
      for (int64_t i = start; i < start + config_.segment; ++i)
        perm[i] += static_cast<uint32_t>(start);
    }
    for (int64_t s = sorted; s < in.kv_len(); ++s) perm[s] = static_cast<uint32_t>(s);
  }

  // mass [keys] += probabilities of the last query block's rows, without a causal mask.
  void AddLastBlockMass(const Plan& plan, const AttentionInputs& in, int64_t head, int64_t keys,
                        WorkerScratch scratch) const {
    const int64_t rows = std::min(config_.block, in.q.rows);
    float* score = scratch[plan.scores];
    for (int64_t at = 0; at < rows && keys > 0; at += kRows) {
      const int64_t n = std::min(kRows, rows - at);
      ScaledQueries(in.q, {in.q.rows - rows + at, n}, head, in.scale, scratch[plan.queries]);
      ScoreAllKeys(scratch[plan.queries], n, in.k, head / GroupSize(plan.shape), keys, score,
                   scratch[plan.keys], scratch[plan.gemm]);
      for (int64_t i = 0; i < n; ++i) {
        kernels::Softmax(score + i * keys, keys);
        for (int64_t s = 0; s < keys; ++s) scratch[plan.mass][s] += score[i * keys + s];
      }
    }
  }

  int64_t BlockOfFirstKey(const uint32_t* perm, int64_t keys) const {
    int64_t at = 0;
    while (at < keys && perm[at] != 0) ++at;
    return at / config_.block;
  }

  void PoolBlocks(const Plan& plan, const AttentionInputs& in, const RunContext& ctx,
                  const uint32_t* perm) const {
    const int64_t d = in.k.dim;
    const int64_t whole = in.kv_len() / config_.segment * config_.segment / config_.block;
    ctx.executor->ParallelFor(plan.orders * whole, 4, [&](int64_t begin, int64_t end, int w) {
      float* keys = plan.Worker(ctx, w)[plan.keys];
      for (int64_t i = begin; i < end; ++i) {
        const int64_t order = i / whole;
        const int64_t block = i % whole;
        for (int64_t j = 0; j < config_.block; ++j) {
          const int64_t at = block * config_.block + j;
          const int64_t key = perm == nullptr ? at : perm[order * in.kv_len() + at];
          KeysAsFloat(in.k, KvOf(plan, order), key, 1, keys + j * d);
        }
        kernels::Pool(kernels::PoolKind::kMean, keys, DType::kF32, d, config_.block, d,
                      plan.Get(ctx, plan.means) + (order * plan.blocks + block) * d);
      }
    });
  }

  // Entries of blocks [0, candidates): those of earlier segments.
  int64_t SelectEarlier(const Plan& plan, const RunContext& ctx, int64_t head, int64_t candidates,
                        int64_t d, WorkerScratch scratch, PlanEntry* out) const {
    if (candidates == 0) return 0;
    const int64_t order = head / HeadsOf(plan);
    const int64_t sink = plan.Get(ctx, plan.sink)[order];
    float* scores = scratch[plan.scores];
    uint32_t* picked = scratch[plan.picked];
    ScoreSoftmax(scratch[plan.queries], 1, plan.Get(ctx, plan.means) + order * plan.blocks * d,
                 candidates, d, scores, scratch[plan.gemm]);
    const int64_t count =
        kernels::TopP(scores, candidates, static_cast<float>(config_.p), picked, scratch[plan.top]);
    int64_t n = 0;
    int64_t next = 0;
    for (int64_t b = 0; b < candidates; ++b) {
      const bool chosen = next < count && picked[next] == b;
      next += chosen;
      if (chosen || b == sink) out[n++] = ExactEntry(b, 1, MaskClass::kFull, b == sink);
    }
    return n;
  }

  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_PBS_ATTN_PBS_ATTN_H_
