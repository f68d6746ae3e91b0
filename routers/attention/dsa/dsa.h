#ifndef SLUICE_ROUTERS_ATTENTION_DSA_DSA_H_
#define SLUICE_ROUTERS_ATTENTION_DSA_DSA_H_
// The lightning indexer of DeepSeek sparse attention (DSA). Scores are fp32 here (upstream:
// Hadamard-rotated fp8; the rotation changes nothing in fp32). Whoever has no trained indexer gets
// the substitute of common/score.h.
//
//   SCORE   sum_j w_j ReLU(q_j . k) of every earlier token
//   SELECT  the k best tokens, one list a token, shared by all heads
//
// NaN scores are never selected; a query without any other keeps its own token, so that a NaN query
// comes out as NaN. O(keys * index_heads * index_dim) a query.
#include "sluice/routers/attention/common/score.h"
#include "sluice/runtime/kernels/top_k/top_k.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Dsa {
 public:
  static constexpr AttentionTraits kTraits = {.name = "dsa",
                                              .title = "DeepSeek-V3.2",
                                              .arxiv = "2512.02556",
                                              .token_causal = true,
                                              .reads_index = true,
                                              .full_budget = "k=2147483648",
                                              .small_budget = "k=24"};

  struct Config {
    int64_t k = 2048;
    template <class V>
    void VisitFields(V&& v) {
      v("k", k, Range<int64_t>{1, kEverything}, "tokens kept per query");
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    Scratch<float> scores, index;
    Scratch<std::byte> top;
  };

  static absl::StatusOr<Dsa> Create(const Config& c) { return Dsa(c); }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    plan.scores = plan.AddScratch<float>(s.max_kv);
    plan.index = plan.AddScratch<float>(Indexer::ScratchFloats(s, s.max_kv));
    plan.top = plan.AddScratch<std::byte>(kernels::TopKScratchBytes(s.max_kv));
    plan.layout.AddBranch({.rows = s.max_queries, .token_slots = std::min(config_.k, s.max_kv)});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext& ctx,
                   PlanBuilder& out) const {
    SLUICE_RETURN_IF_ERROR(Indexer::Check(plan.shape, in));
    const Indexer indexer(plan.shape, in);

    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.encoding = Encoding::kTokens,
                                                                .scope = ListScope::kAllHeads,
                                                                .tile = 1,
                                                                .token_mask = MaskClass::kFull}));
    ForEachRow(branch, plan, ctx, [&](int64_t, int64_t i, WorkerScratch scratch) {
      const int64_t keys = in.q_begin + i + 1;
      float* scores = scratch[plan.scores];
      indexer.ScoreKeys(i, nullptr, keys, scores, scratch[plan.index]);
      uint32_t* tokens = branch.tokens(i);
      int64_t count =
          kernels::TopK(scores, keys, std::min(config_.k, keys), tokens, scratch[plan.top]).count;
      if (count == 0) tokens[count++] = static_cast<uint32_t>(keys - 1);
      branch.set_count(i, count);
    });
    return absl::OkStatus();
  }

 private:
  explicit Dsa(const Config& c) : config_(c) {}
  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_DSA_DSA_H_
