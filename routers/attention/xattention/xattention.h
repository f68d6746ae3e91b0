#ifndef SLUICE_ROUTERS_ATTENTION_XATTENTION_XATTENTION_H_
#define SLUICE_ROUTERS_ATTENTION_XATTENTION_XATTENTION_H_
// XAttention: blocks of keys by the antidiagonals of the squares that strides of queries and keys
// make. Training-free, for prefill.
//
//   PREP    S consecutive keys side by side are one row, S consecutive queries of a tile in reverse
//           order another: one product sums the antidiagonal of an S x S square
//   SCORE   products * scale / S, softmax over the key strides that a query stride reaches, summed
//           over the query strides of the tile and the key strides of a block; a list a query head
//   SELECT  the first block and the tile's own, then the others by falling score until all hold the
//           threshold's share; the block that crosses it is kept
//   ATTEND  the selected blocks, causal
//
// With an even S, and tiles that begin on a stride, no pair at an even distance is looked at.
// Recalled or inferred, not checked, and therefore switches: that probabilities are summed, not
// maximised; and that tiles with few queries, decode above all, are dense, since the method speaks
// of prompts. Query strides count from the tile's first query and a stride reaches the keys up to
// its last one; what a stride lacks at the end of a tile or of the keys is zero, and keys after the
// tile have no say. A query stride with a NaN among its products has none either; ties go to the
// lowest block.
//
// Planning costs 1 / S of QK^T, and the keys are read once a tile and KV head. Nothing is kept
// between calls.
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/routers/attention/common/select.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class XAttention {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "xattention",
      .title = "XAttention: Block Sparse Attention with Antidiagonal Scoring",
      .arxiv = "2503.16428",
      .chunk_invariant = false,  // a whole block of queries shares a list, usually 128
      .full_budget = "threshold=1",
      .small_budget = "block=16,stride=8,threshold=0.3"};

  enum class Pair : uint8_t { kSum, kMax };
  struct Config {
    int64_t block = 128;
    int64_t stride = 16;
    double threshold = 0.9;
    int64_t sink = 1;
    Pair pair = Pair::kSum;
    int64_t least_queries = 16;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{16, 256},
        "queries and keys per block, a multiple of stride");
      v("stride", stride, Range<int64_t>{1, 64}, "side of the squares (upstream: 8 or 16)");
      v("threshold", threshold, Range<double>{0, 1},
        "share of a tile's estimated probability that its blocks hold; 0: the forced blocks alone");
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first blocks always kept");
      v("pair", pair, Choices{"sum", "max"},
        "what a query block's probabilities of a key block become: their sum (recalled), or the "
        "largest");
      v("least_queries", least_queries, Range<int64_t>{1, 256},
        "tiles of fewer queries are dense (inferred), at most block; 1: none");
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    Scratch<float> queries, keys, scores, mass, gemm;
    Scratch<std::byte> select;
  };

  static absl::StatusOr<XAttention> Create(const Config& c) {
    if (c.block % c.stride != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("block=", c.block, " is not a multiple of stride=", c.stride));
    }
    if (c.least_queries > c.block) {
      return absl::InvalidArgumentError(absl::StrCat("least_queries=", c.least_queries,
                                                     ", at most block=", c.block, " is allowed"));
    }
    return XAttention(c);
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    const int64_t width = config_.stride * s.head_dim;
    const int64_t blocks = CeilDiv(s.max_kv, config_.block);
    const int64_t rows = config_.block / config_.stride;
    const int64_t of_group = GroupSize(s) * rows;
    plan.queries = plan.AddScratch<float>(of_group * width);
    plan.keys = plan.AddScratch<float>(kStrides * width);
    plan.scores = plan.AddScratch<float>(of_group * blocks * rows);
    plan.mass = plan.AddScratch<float>(blocks);
    plan.gemm = AddGemmScratch(plan, width);
    plan.select = AddSelectScratch(plan, blocks);
    plan.layout.max_tile = config_.block;
    plan.layout.AddBranch({.rows = s.heads * MaxTiles(s, config_.block), .entry_slots = blocks});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext& ctx,
                   PlanBuilder& out) const {
    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.encoding = Encoding::kBlocks,
                                                                .scope = ListScope::kQueryHead,
                                                                .tile = config_.block,
                                                                .block = config_.block}));
    // The heads of a group share the reading of the keys.
    const int64_t tiles = branch.num_tiles();
    ctx.executor->ParallelFor(
        plan.shape.kv_heads * tiles, 1, [&](int64_t begin, int64_t end, int w) {
          for (int64_t i = begin; i < end; ++i)
            RouteTile(plan, in, i / tiles, i % tiles, plan.Worker(ctx, w), branch);
        });
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kStrides = 64;  // of keys that are scored together

  explicit XAttention(const Config& c)
      : config_(c),
        budget_({.k = 0, .p = c.threshold, .tau = HUGE_VAL, .sink = c.sink, .local = 1}) {}

  int64_t Strides(int64_t n) const { return CeilDiv(n, config_.stride); }

  // Writes the lists of a group's heads.
  void RouteTile(const Plan& plan, const AttentionInputs& in, int64_t kv, int64_t tile,
                 WorkerScratch scratch, BranchWriter branch) const {
    const TileQueries q = branch.Queries(tile);
    const int64_t visible = q.last / config_.block + 1;
    const int64_t group = GroupSize(plan.shape);
    const bool dense = q.count() < config_.least_queries;
    if (!dense) ScoreStrides(plan, in, kv, RowsOf(branch, tile), q, scratch);
    for (int64_t member = 0; member < group; ++member) {
      const int64_t row = branch.row_of(kv * group + member, tile);
      PlanEntry* entries = branch.entries(row);
      if (dense) {
        entries[0] = ExactEntry(0, visible, MaskClass::kCausal, /*forced=*/true);
        branch.set_count(row, 1);
        continue;
      }
      SumBlocks(plan, q, member, scratch);
      branch.set_count(row, SelectBlocks(budget_, scratch[plan.mass], visible,
                                         q.first / config_.block, scratch[plan.select], entries));
    }
  }

  // out [strides, stride, d]: the tile's scaled queries, in reverse order inside each stride.
  void ReverseStrides(const AttentionInputs& in, TileRows rows, int64_t head, float* out) const {
    const int64_t d = in.q.dim;
    const float scale = in.scale / static_cast<float>(config_.stride);
    std::fill(out, out + Strides(rows.count) * config_.stride * d, 0.0f);
    for (int64_t i = 0; i < rows.count; ++i) {
      const int64_t at = (i / config_.stride + 1) * config_.stride - 1 - i % config_.stride;
      ScaledQueries(in.q, {rows.begin + i, 1}, head, scale, out + at * d);
    }
  }

  // scores [heads, query strides, key strides] of a group's heads and the keys up to the tile's
  // last query.
  void ScoreStrides(const Plan& plan, const AttentionInputs& in, int64_t kv, TileRows rows,
                    const TileQueries& q, WorkerScratch scratch) const {
    const int64_t d = in.k.dim;
    const int64_t width = config_.stride * d;
    const int64_t strides = Strides(q.last + 1);
    const int64_t group = GroupSize(plan.shape);
    const int64_t each = Strides(rows.count);
    for (int64_t h = 0; h < group; ++h)
      ReverseStrides(in, rows, kv * group + h, scratch[plan.queries] + h * each * width);

    float* keys = scratch[plan.keys];
    for (int64_t at = 0; at < strides; at += kStrides) {
      const int64_t n = std::min(kStrides, strides - at);
      const int64_t begin = at * config_.stride;
      const int64_t there = std::min(n * config_.stride, q.last + 1 - begin);
      KeysAsFloat(in.k, kv, begin, there, keys);
      std::fill(keys + there * d, keys + n * width, 0.0f);
      kernels::GemmNT(scratch[plan.queries], width, keys, width, group * each, n, width,
                      scratch[plan.scores] + at, strides, scratch[plan.gemm]);
    }
  }

  // mass [blocks]: what the probabilities of a group's head say of each block.
  void SumBlocks(const Plan& plan, const TileQueries& q, int64_t member,
                 WorkerScratch scratch) const {
    const int64_t strides = Strides(q.last + 1);
    const int64_t each = Strides(q.count());
    float* mass = scratch[plan.mass];
    std::fill(mass, mass + q.last / config_.block + 1, 0.0f);
    for (int64_t i = 0; i < each; ++i) {
      float* score = scratch[plan.scores] + (member * each + i) * strides;
      const int64_t last = std::min(q.last, q.first + (i + 1) * config_.stride - 1);
      const int64_t reached = last / config_.stride + 1;
      if (std::isnan(kernels::Softmax(score, reached))) continue;
      for (int64_t j = 0; j < reached; ++j) {
        float& block = mass[j * config_.stride / config_.block];
        block = config_.pair == Pair::kSum ? block + score[j] : std::max(block, score[j]);
      }
    }
  }

  Config config_;
  BlockBudget budget_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_XATTENTION_XATTENTION_H_
