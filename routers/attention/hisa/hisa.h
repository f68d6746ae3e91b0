#ifndef SLUICE_ROUTERS_ATTENTION_HISA_HISA_H_
#define SLUICE_ROUTERS_ATTENTION_HISA_HISA_H_
// HISA (arXiv 2603.28458): DSA's list, found hierarchically. Blocks of index keys are mean-pooled
// and scored first; the m best (the first and the query's own block are forced and count) keep
// their tokens, which DSA's scorer then ranks. With m >= the number of blocks the set is DSA's.
// O((keys / block + m * block) * index_heads * index_dim) a query.
#include "sluice/api/attention_router.h"
#include "sluice/routers/attention/common/indexer.h"
#include "sluice/routers/attention/common/planning.h"

SLUICE_BEGIN_NAMESPACE
class Hisa {
 public:
  static constexpr absl::string_view kName = "hisa";
  static constexpr bool kExactAtFullBudget = true, kTokenCausal = true;
  struct Config {
    int64_t k = 2048, m = 64, block = 128;
    template <class V>
    void VisitFields(V&& v) {
      v("k", k, Range<int64_t>{1, int64_t{1} << 31}, "tokens kept per query");
      v("m", m, Range<int64_t>{2, int64_t{1} << 31},
        "blocks whose tokens are scored; (m - 1) * block + 1 >= k");
      v("block", block, Range<int64_t>{8, 4096}, "index keys per block");
    }
  };
  struct Plan : AttentionPlanInfo {
    attention_common::WorkerScratch scratch;
    size_t score = 0, index = 0, top = 0, ids = 0, picked = 0;
    int64_t blocks = 0;
  };
  static Config FullBudget() { return {int64_t{1} << 31, int64_t{1} << 31, 128}; }
  static absl::StatusOr<Hisa> Create(const Config& c) {
    if ((c.m - 1) * c.block + 1 < c.k) {
      return absl::InvalidArgumentError(absl::StrCat("m=", c.m, " blocks of ", c.block,
                                                     " may hold only ", (c.m - 1) * c.block + 1,
                                                     " visible tokens, fewer than k=", c.k));
    }
    return Hisa(c);
  }
  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan p;
    p.shape = s;
    p.blocks = (s.max_kv + config_.block - 1) / config_.block;
    p.state_bytes =
        attention_common::BlockMeans::Bytes(attention_common::Indexer::Streams(s), s.max_kv,
                                            config_.block, attention_common::Indexer::Width(s));
    p.max_rows = s.max_queries;
    p.token_slots = std::min(config_.k, s.max_kv);
    WorkspaceLayout one, all;
    p.score = one.Add<float>(s.max_kv);
    p.index = one.Add<float>(attention_common::Indexer::ScratchFloats(s, s.max_kv));
    p.top = one.Add<std::byte>(static_cast<int64_t>(kernels::TopKScratchBytes(s.max_kv)));
    p.ids = one.Add<uint32_t>(s.max_kv);
    p.picked = one.Add<uint32_t>(std::max(p.blocks, p.token_slots));
    p.scratch.Add(all, one, s.workers);
    p.workspace_bytes = all.bytes();
    return p;
  }
  absl::Status Run(const Plan& p, const AttentionInputs& in, std::byte* state,
                   const RunContext& ctx, PlanWriter& out) const {
    SLUICE_RETURN_IF_ERROR(attention_common::Indexer::Check(p.shape, in));
    const PlanHeader header = attention_common::HeaderOf(p.shape, in, ListScope::kAllHeads, 1);
    SLUICE_RETURN_IF_ERROR(out.Begin(header, Encoding::kTokens, 1));
    out.set_token_mask(MaskClass::kFull);
    const attention_common::Indexer indexer(p.shape, in);
    const int64_t streams = attention_common::Indexer::Streams(p.shape),
                  width = attention_common::Indexer::Width(p.shape), B = config_.block;
    // A block's mean over keys later than the query is never read: the own block is forced, earlier
    // blocks are whole.
    const attention_common::BlockMeans means =
        Summarise(p, in, indexer, streams, width, state, *ctx.executor);
    attention_common::ForEachRow(header, *ctx.executor, [&](int64_t, int64_t i, int w) {
      const int64_t keys = in.q_begin + i + 1, blocks = (keys + B - 1) / B;
      uint32_t* list = out.tokens(i);
      if (keys <= config_.k) {
        for (int64_t s = 0; s < keys; ++s) list[s] = static_cast<uint32_t>(s);
        out.set_count(i, keys);
        return;
      }
      float* score = p.scratch.At<float>(ctx.workspace, w, p.score);
      float* index = p.scratch.At<float>(ctx.workspace, w, p.index);
      std::byte* top = p.scratch.At<std::byte>(ctx.workspace, w, p.top);
      uint32_t* ids = p.scratch.At<uint32_t>(ctx.workspace, w, p.ids);
      uint32_t* picked = p.scratch.At<uint32_t>(ctx.workspace, w, p.picked);
      if (blocks <= config_.m) {
        indexer.Score(i, nullptr, keys, nullptr, score, index);
        out.set_count(i, kernels::TopK(score, keys, config_.k, list, top).count);
        return;
      }
      indexer.Score(i, nullptr, blocks, &means, score, index);
      score[0] = score[blocks - 1] = HUGE_VALF;
      const int64_t kept = kernels::TopK(score, blocks, config_.m, picked, top).count;
      int64_t n = 0;
      for (int64_t b = 0; b < kept; ++b) {
        const int64_t start = static_cast<int64_t>(picked[b]) * B, end = std::min(keys, start + B);
        for (int64_t s = start; s < end; ++s) ids[n++] = static_cast<uint32_t>(s);
      }
      indexer.Score(i, ids, n, nullptr, score, index);
      const int64_t count = kernels::TopK(score, n, config_.k, picked, top).count;
      for (int64_t j = 0; j < count; ++j) list[j] = ids[picked[j]];
      out.set_count(i, count);
    });
    return absl::OkStatus();
  }

 private:
  explicit Hisa(const Config& c) : config_(c) {}
  attention_common::BlockMeans Summarise(const Plan& p, const AttentionInputs& in,
                                         const attention_common::Indexer& indexer, int64_t streams,
                                         int64_t width, std::byte* state, Executor& ex) const {
    attention_common::BlockMeans means(state, streams, p.shape.max_kv, config_.block, width);
    if (p.shape.index_heads > 0) {
      means.Append(indexer.Keys(0), ex);
    } else {
      means.Append(in.k, ex);
    }
    return means;
  }
  Config config_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_HISA_HISA_H_
