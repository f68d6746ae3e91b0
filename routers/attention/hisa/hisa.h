#ifndef SLUICE_ROUTERS_ATTENTION_HISA_HISA_H_
#define SLUICE_ROUTERS_ATTENTION_HISA_HISA_H_
// HISA: DSA's list, found hierarchically. With m >= the number of blocks the set is DSA's.
//
//   SUM     mean of each block of index keys; with bound=max its element-wise maxima and minima
//   SCORE   DSA's indexer on the means; with bound=max, what none of the block's tokens exceeds
//   SELECT  the m best blocks; the first and the query's own are forced and count
//   REFINE  to the blocks' tokens
//   SCORE   DSA's indexer on them, in DSA's choice of bits (score=int8, int4)
//   SELECT  the k best tokens
//
// A mean hides a single token that a query looks for. bound=max is ours: a token that is left out
// scores no higher than the bound of any block that was chosen; it costs twice as much a block.
//
// The indexer is any of DSA's. NaN scores are never selected; a query without any other keeps its
// own token, so that a NaN query comes out as NaN. O((keys / block + m * block) * index_heads *
// index_dim) a query.
#include "sluice/routers/attention/common/learned_index.h"
#include "sluice/routers/attention/common/sum.h"
#include "sluice/routers/attention/common/token_choice.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Hisa {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "hisa",
      .title = "HISA: hierarchical indexing for sparse attention",
      .arxiv = "2603.28458",
      .token_causal = true,
      .reads_index = true,
      .full_budget = "k=2147483648,m=2147483648,index=learned",
      .small_budget = "k=24,m=6,block=16,index=learned"};

  enum class Bound : uint8_t { kMean, kMax };
  struct Config {
    TokenBudget budget;
    int64_t m = 64;
    int64_t block = 128;
    IndexOf index = IndexOf::kGiven;
    Bound bound = Bound::kMean;
    template <class V>
    void VisitFields(V&& v) {
      budget.VisitFields(v);
      v("m", m, Range<int64_t>{2, kEverything},
        "blocks whose tokens are scored; (m - 1) * block + 1 >= k");
      v("block", block, Range<int64_t>{8, 4096}, "index keys per block");
      v("bound", bound, Choices{"mean", "max"},
        "a block's score: its mean's, or a bound on its tokens'");
      VisitIndex(v, index);
    }
    bool Learns() const { return index == IndexOf::kLearned; }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    LearnedIndex::Layout index_of;  // its shape: the plan's where nothing is learned
    BlockLayout blocks;             // means or bounds
    IntKeys::Layout few_bits;
    TokenChoice::Layout choice;
    Scratch<uint32_t> ids;
  };

  static WeightKeys Weights(const Config& c, const AttentionShape& s) {
    return LearnedIndex::Weights(c.index, s);
  }
  static absl::StatusOr<Hisa> Create(const Config& c) {
    if (c.Learns()) return NoIndexWeights();
    return Checked(c);
  }
  static absl::StatusOr<Hisa> Create(const Config& c, const WeightSource& w) {
    SLUICE_ASSIGN_OR_RETURN(Hisa r, Checked(c));
    if (!c.Learns()) return UnusedIndexWeights();
    SLUICE_ASSIGN_OR_RETURN(r.learned_, LearnedIndex::Read(w));
    return r;
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    SLUICE_ASSIGN_OR_RETURN(plan.index_of, learned_.AddTo(plan));
    const AttentionShape& indexed = plan.index_of.shape;
    const int64_t kept = std::min(config_.budget.k, s.max_kv);
    plan.blocks = AddBlocks(plan, Indexer::Streams(indexed), Indexer::Width(indexed));
    plan.few_bits = IntKeys::AddTo(plan, config_.budget.score, Indexer::Streams(indexed),
                                   Indexer::Width(indexed));
    plan.choice = TokenChoice::AddTo(plan, indexed, config_.budget, plan.blocks.blocks);
    plan.ids = plan.AddScratch<uint32_t>(s.max_kv);
    plan.layout.AddBranch({.rows = s.max_queries, .token_slots = kept});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    SLUICE_ASSIGN_OR_RETURN(const AttentionInputs given,
                            learned_.Project(plan, plan.index_of, in, state, ctx));
    SLUICE_RETURN_IF_ERROR(Indexer::Check(plan.index_of.shape, given));
    IntKeys few_bits(state, plan.few_bits);
    const Indexer indexer(plan.index_of.shape, given, few_bits);
    few_bits.Append(indexer.Keys(), plan, ctx);
    const TokenChoice choice(plan.choice, config_.budget, indexer);

    // A block's keys later than the query have no say: the own block is forced, earlier blocks are
    // whole.
    BlockMeans means(state, plan.blocks);
    BlockBounds bounds(state, plan.blocks);
    if (config_.bound == Bound::kMean) {
      means.Append(indexer.Keys(), *ctx.executor);
    } else {
      bounds.Append(indexer.Keys(), *ctx.executor);
    }
    const auto score_blocks = [&](int64_t i, int64_t n, float* scores, float* index) {
      if (config_.bound == Bound::kMean) return indexer.ScoreMeans(i, means, n, scores, index);
      indexer.ScoreBounds(i, bounds, n, scores, index);
    };

    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.encoding = Encoding::kTokens,
                                                                .scope = ListScope::kAllHeads,
                                                                .tile = 1,
                                                                .token_mask = MaskClass::kFull}));
    ForEachRow(branch, plan, ctx, [&](int64_t, int64_t i, WorkerScratch scratch) {
      const int64_t keys = in.q_begin + i + 1;
      const int64_t candidates = Candidates(plan, score_blocks, i, keys, scratch);
      uint32_t* tokens = branch.tokens(i);
      int64_t count = choice.Best(i, scratch[plan.ids], candidates, scratch, tokens);
      if (count == 0) tokens[count++] = static_cast<uint32_t>(keys - 1);
      branch.set_count(i, count);
    });
    return absl::OkStatus();
  }

 private:
  explicit Hisa(const Config& c) : config_(c) {}
  static absl::StatusOr<Hisa> Checked(const Config& c) {
    SLUICE_RETURN_IF_ERROR(c.budget.Check());
    const int64_t sure = (c.m - 1) * c.block + 1;  // the own block may hold one visible token
    if (sure < c.budget.k) {
      return absl::InvalidArgumentError(absl::StrCat("m=", c.m, " blocks of ", c.block,
                                                     " may hold only ", sure,
                                                     " visible tokens, fewer than k=", c.budget.k));
    }
    return Hisa(c);
  }

  BlockLayout AddBlocks(RouterPlan& plan, int64_t streams, int64_t width) const {
    if (config_.bound == Bound::kMean)
      return BlockMeans::AddTo(plan, streams, config_.block, width);
    return BlockBounds::AddTo(plan, streams, config_.block, width);
  }

  // The tokens of the best blocks, ascending, in plan.ids; returns how many.
  template <class ScoreBlocks>
  int64_t Candidates(const Plan& plan, const ScoreBlocks& score_blocks, int64_t i, int64_t keys,
                     WorkerScratch scratch) const {
    const int64_t blocks = CeilDiv(keys, config_.block);
    float* scores = scratch[plan.choice.scores];
    score_blocks(i, blocks, scores, scratch[plan.choice.index]);
    scores[0] = HUGE_VALF;
    scores[blocks - 1] = HUGE_VALF;

    uint32_t* picked = scratch[plan.choice.picked];
    const int64_t kept =
        kernels::TopK(scores, blocks, std::min(config_.m, blocks), picked, scratch[plan.choice.top])
            .count;
    uint32_t* ids = scratch[plan.ids];
    int64_t n = 0;
    for (int64_t b = 0; b < kept; ++b) {
      const int64_t start = picked[b] * config_.block;
      const int64_t end = std::min(keys, start + config_.block);
      for (int64_t s = start; s < end; ++s) ids[n++] = static_cast<uint32_t>(s);
    }
    return n;
  }

  Config config_;
  LearnedIndex learned_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_HISA_HISA_H_
