#ifndef SLUICE_ROUTERS_ATTENTION_MEAN_POOL_MEAN_POOL_H_
#define SLUICE_ROUTERS_ATTENTION_MEAN_POOL_MEAN_POOL_H_
// Block selection by mean-pooled keys: each query scores q . mean(k of block) * scale, a softmax
// over the visible blocks makes rows comparable, and a block's score is its largest probability
// over the tile's queries and the group's heads. Training-free; the baseline that learned block
// routers must beat. Key summaries are appended as keys arrive. O(queries * blocks * width) per
// head, 1/block of QK^T.
#include "sluice/api/attention_router.h"
#include "sluice/routers/attention/common/planning.h"
#include "sluice/runtime/kernels/gemm/gemm.h"
#include "sluice/runtime/kernels/softmax/softmax.h"

SLUICE_BEGIN_NAMESPACE
class MeanPool {
 public:
  static constexpr absl::string_view kName = "mean_pool";
  static constexpr bool kExactAtFullBudget = true, kTokenCausal = false;
  static constexpr int64_t kEverything = int64_t{1} << 31;
  struct Config {
    int64_t block = 64, k = 32, sink = 1, local = 2;
    double p = 0;
    bool force_counts_in_budget = true;
    bool pool_queries = false;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{16, 1024}, "keys per block");
      v("k", k, Range<int64_t>{0, kEverything}, "blocks kept per list row; 0: use p");
      v("p", p, Range<double>{0, 1}, "share of the block probability kept when k = 0");
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first blocks always kept");
      v("local", local, Range<int64_t>{1, 1 << 20}, "last blocks always kept, own block included");
      v("force_counts_in_budget", force_counts_in_budget, Range<bool>{false, true},
        "whether forced blocks use up k or p");
      v("pool_queries", pool_queries, Range<bool>{false, true},
        "score the mean query of a tile instead of every query");
    }
  };
  struct Plan : AttentionPlanInfo {
    attention_common::WorkerScratch scratch;
    size_t score = 0, block_score = 0, gemm = 0, select = 0, pooled = 0;
    int64_t blocks = 0;
  };
  static Config FullBudget() {
    Config c;
    c.k = kEverything;
    return c;
  }
  static absl::StatusOr<MeanPool> Create(const Config& c) {
    if (c.k == 0 && c.p == 0)
      return absl::InvalidArgumentError("k and p are both 0; one must be positive");
    return MeanPool(c);
  }
  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan p;
    p.shape = s;
    p.blocks = (s.max_kv + config_.block - 1) / config_.block;
    p.state_bytes =
        attention_common::BlockMeans::Bytes(s.kv_heads, s.max_kv, config_.block, s.head_dim);
    p.max_rows = s.kv_heads * attention_common::MaxTiles(s, kTile);
    p.entry_slots = p.blocks;
    WorkspaceLayout one, all;
    p.score = one.Add<float>(kTile * p.blocks);
    p.block_score = one.Add<float>(p.blocks);
    p.gemm = one.Add<float>(static_cast<int64_t>(kernels::GemmScratchFloats(s.head_dim)));
    p.select =
        one.Add<std::byte>(static_cast<int64_t>(attention_common::BlockScratchBytes(p.blocks)));
    p.pooled = one.Add<float>(kTile * s.head_dim);
    p.scratch.Add(all, one, s.workers);
    p.workspace_bytes = all.bytes();
    return p;
  }
  absl::Status Run(const Plan& p, const AttentionInputs& in, std::byte* state,
                   const RunContext& ctx, PlanWriter& out) const {
    const PlanHeader header = attention_common::HeaderOf(p.shape, in, ListScope::kKvHead, kTile);
    SLUICE_RETURN_IF_ERROR(out.Begin(header, Encoding::kBlocks, config_.block));
    attention_common::BlockMeans means(state, p.shape.kv_heads, p.shape.max_kv, config_.block,
                                       p.shape.head_dim);
    means.Append(in.k, *ctx.executor);
    const int64_t g = p.shape.heads / p.shape.kv_heads, d = p.shape.head_dim;
    attention_common::ForEachRow(header, *ctx.executor, [&](int64_t kv, int64_t tile, int w) {
      const auto q = attention_common::QueriesOf(header, tile);
      const int64_t visible = q.last / config_.block + 1, own = q.first / config_.block;
      float* score = p.scratch.At<float>(ctx.workspace, w, p.score);
      float* best = p.scratch.At<float>(ctx.workspace, w, p.block_score);
      float* pooled = p.scratch.At<float>(ctx.workspace, w, p.pooled);
      std::fill(best, best + visible, 0.0f);
      const int64_t rows = config_.pool_queries ? 1 : q.count();
      for (int64_t h = kv * g; h < (kv + 1) * g; ++h) {
        // Scaled copies of the queries, or their mean.
        if (config_.pool_queries) {
          kernels::Pool(kernels::PoolKind::kMean, in.q.at(q.first - in.q_begin, h), DType::kF32,
                        in.q.row_stride, q.count(), d, pooled);
          for (int64_t x = 0; x < d; ++x) pooled[x] *= in.scale;
        } else {
          for (int64_t i = 0; i < rows; ++i) {
            const float* from = in.q.at(q.first - in.q_begin + i, h);
            for (int64_t x = 0; x < d; ++x) pooled[i * d + x] = from[x] * in.scale;
          }
        }
        kernels::GemmNT(pooled, d, means.At(kv, 0), d, rows, visible, d, score, visible,
                        p.scratch.At<float>(ctx.workspace, w, p.gemm));
        for (int64_t i = 0; i < rows; ++i) {
          float* s = score + i * visible;
          kernels::Softmax(s, visible);
          for (int64_t b = 0; b < visible; ++b) best[b] = std::max(best[b], s[b]);
        }
      }
      const int64_t row = out.row_of(kv, tile);
      out.set_count(row,
                    attention_common::SelectBlocks(
                        attention_common::BlockRule{config_.k, config_.p, -1, config_.sink,
                                                    config_.local, config_.force_counts_in_budget},
                        best, visible, own, p.scratch.At<std::byte>(ctx.workspace, w, p.select),
                        out.entries(row)));
    });
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kTile = 64;
  explicit MeanPool(const Config& c) : config_(c) {}
  Config config_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_MEAN_POOL_MEAN_POOL_H_
