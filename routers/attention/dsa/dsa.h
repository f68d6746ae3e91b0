#ifndef SLUICE_ROUTERS_ATTENTION_DSA_DSA_H_
#define SLUICE_ROUTERS_ATTENTION_DSA_DSA_H_
// The lightning indexer of DeepSeek sparse attention (DSA; arXiv 2512.02556): every token scores
// all earlier tokens with a small ReLU indexer and keeps the k best, one list a token, shared by
// all heads. Scores are fp32 here (upstream: Hadamard-rotated fp8; the rotation changes nothing in
// fp32). Whoever has no trained indexer gets the substitute of common/indexer.h. O(keys *
// index_heads * index_dim) a query.
#include "sluice/api/attention_router.h"
#include "sluice/routers/attention/common/indexer.h"
#include "sluice/routers/attention/common/planning.h"

SLUICE_BEGIN_NAMESPACE
class Dsa {
 public:
  static constexpr absl::string_view kName = "dsa";
  static constexpr bool kExactAtFullBudget = true, kTokenCausal = true;
  struct Config {
    int64_t k = 2048;
    template <class V>
    void VisitFields(V&& v) {
      v("k", k, Range<int64_t>{1, int64_t{1} << 31}, "tokens kept per query");
    }
  };
  struct Plan : AttentionPlanInfo {
    attention_common::WorkerScratch scratch;
    size_t score = 0, index = 0, top = 0;
  };
  static Config FullBudget() { return {int64_t{1} << 31}; }
  static absl::StatusOr<Dsa> Create(const Config& c) { return Dsa(c); }
  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan p;
    p.shape = s;
    p.max_rows = s.max_queries;
    p.token_slots = std::min(config_.k, s.max_kv);
    WorkspaceLayout one, all;
    p.score = one.Add<float>(s.max_kv);
    p.index = one.Add<float>(attention_common::Indexer::ScratchFloats(s, s.max_kv));
    p.top = one.Add<std::byte>(static_cast<int64_t>(kernels::TopKScratchBytes(s.max_kv)));
    p.scratch.Add(all, one, s.workers);
    p.workspace_bytes = all.bytes();
    return p;
  }
  absl::Status Run(const Plan& p, const AttentionInputs& in, std::byte*, const RunContext& ctx,
                   PlanWriter& out) const {
    SLUICE_RETURN_IF_ERROR(attention_common::Indexer::Check(p.shape, in));
    const PlanHeader header = attention_common::HeaderOf(p.shape, in, ListScope::kAllHeads, 1);
    SLUICE_RETURN_IF_ERROR(out.Begin(header, Encoding::kTokens, 1));
    out.set_token_mask(MaskClass::kFull);
    const attention_common::Indexer indexer(p.shape, in);
    attention_common::ForEachRow(header, *ctx.executor, [&](int64_t, int64_t i, int w) {
      const int64_t keys = in.q_begin + i + 1;
      uint32_t* list = out.tokens(i);
      if (keys <= config_.k) {
        for (int64_t s = 0; s < keys; ++s) list[s] = static_cast<uint32_t>(s);
        out.set_count(i, keys);
        return;
      }
      float* score = p.scratch.At<float>(ctx.workspace, w, p.score);
      indexer.Score(i, nullptr, keys, nullptr, score,
                    p.scratch.At<float>(ctx.workspace, w, p.index));
      out.set_count(i, kernels::TopK(score, keys, config_.k, list,
                                     p.scratch.At<std::byte>(ctx.workspace, w, p.top))
                           .count);
    });
    return absl::OkStatus();
  }

 private:
  explicit Dsa(const Config& c) : config_(c) {}
  Config config_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_DSA_DSA_H_
