#ifndef SLUICE_ROUTERS_ATTENTION_DSA_DSA_H_
#define SLUICE_ROUTERS_ATTENTION_DSA_DSA_H_
// The lightning indexer of DeepSeek sparse attention (DSA). The indexer is the host's; with
// index=learned that of the weights (common/learned_index.h); where there is neither, the
// substitute of common/score.h.
//
//   PREP    with score=int8 or int4: keys, Hadamard-rotated, in so many bits with a scale each,
//           queries likewise in 8 (upstream: fp8 both)
//   SCORE   sum_j w_j ReLU(q_j . k) of every earlier token
//   SELECT  the k best tokens, one list a token, shared by all heads; with rescore those whose rank
//           few bits leave in doubt by scores as given (ours)
//
// NaN scores are never selected; a query without any other keeps its own token, so that a NaN query
// comes out as NaN; in whole numbers, what holds an infinite element scores NaN too. O(keys *
// index_heads * index_dim) a query.
#include "sluice/routers/attention/common/learned_index.h"
#include "sluice/routers/attention/common/token_choice.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Dsa {
 public:
  static constexpr AttentionTraits kTraits = {.name = "dsa",
                                              .title = "DeepSeek-V3.2",
                                              .arxiv = "2512.02556",
                                              .token_causal = true,
                                              .reads_index = true,
                                              .full_budget = "k=2147483648,index=learned",
                                              .small_budget = "k=24,index=learned"};

  struct Config {
    TokenBudget budget;
    IndexOf index = IndexOf::kGiven;
    template <class V>
    void VisitFields(V&& v) {
      budget.VisitFields(v);
      VisitIndex(v, index);
    }
    bool Learns() const { return index == IndexOf::kLearned; }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    LearnedIndex::Layout index_of;  // its shape: the plan's where nothing is learned
    IntKeys::Layout few_bits;
    TokenChoice::Layout choice;
  };

  static WeightKeys Weights(const Config& c, const AttentionShape& s) {
    return LearnedIndex::Weights(c.index, s);
  }
  static absl::StatusOr<Dsa> Create(const Config& c) {
    SLUICE_RETURN_IF_ERROR(c.budget.Check());
    if (c.Learns()) return NoIndexWeights();
    return Dsa(c);
  }
  static absl::StatusOr<Dsa> Create(const Config& c, const WeightSource& w) {
    SLUICE_RETURN_IF_ERROR(c.budget.Check());
    Dsa r(c);
    if (!c.Learns()) return UnusedIndexWeights();
    SLUICE_ASSIGN_OR_RETURN(r.learned_, LearnedIndex::Read(w));
    return r;
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    SLUICE_ASSIGN_OR_RETURN(plan.index_of, learned_.AddTo(plan));
    const AttentionShape& indexed = plan.index_of.shape;
    plan.few_bits = IntKeys::AddTo(plan, config_.budget.score, Indexer::Streams(indexed),
                                   Indexer::Width(indexed));
    plan.choice = TokenChoice::AddTo(plan, indexed, config_.budget);
    plan.layout.AddBranch(
        {.rows = s.max_queries, .token_slots = std::min(config_.budget.k, s.max_kv)});
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

    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.encoding = Encoding::kTokens,
                                                                .scope = ListScope::kAllHeads,
                                                                .tile = 1,
                                                                .token_mask = MaskClass::kFull}));
    ForEachRow(branch, plan, ctx, [&](int64_t, int64_t i, WorkerScratch scratch) {
      const int64_t keys = in.q_begin + i + 1;
      uint32_t* tokens = branch.tokens(i);
      int64_t count = choice.Best(i, nullptr, keys, scratch, tokens);
      if (count == 0) tokens[count++] = static_cast<uint32_t>(keys - 1);
      branch.set_count(i, count);
    });
    return absl::OkStatus();
  }

 private:
  explicit Dsa(const Config& c) : config_(c) {}
  Config config_;
  LearnedIndex learned_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_DSA_DSA_H_
