#ifndef SLUICE_ROUTERS_ATTENTION_ORACLE_BLOCK_TOPK_ORACLE_BLOCK_TOPK_H_
#define SLUICE_ROUTERS_ATTENTION_ORACLE_BLOCK_TOPK_ORACLE_BLOCK_TOPK_H_
// The blocks that truly carry the most attention mass, found by computing dense attention: the
// upper anchor of every density curve. For measuring only; planning costs as much as it could ever
// save.
#include "sluice/api/attention_router.h"
#include "sluice/routers/attention/common/planning.h"
#include "sluice/runtime/kernels/convert/convert.h"
#include "sluice/runtime/kernels/gemm/gemm.h"
#include "sluice/runtime/kernels/softmax/softmax.h"

SLUICE_BEGIN_NAMESPACE
class OracleBlockTopK {
 public:
  static constexpr absl::string_view kName = "oracle_block_topk";
  static constexpr bool kExactAtFullBudget = true, kTokenCausal = false;
  static constexpr int64_t kEverything = int64_t{1} << 31;
  struct Config {
    int64_t block = 64, k = 32, sink = 1, local = 2;
    double p = 0;
    bool force_counts_in_budget = true;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{16, 1024}, "keys per block");
      v("k", k, Range<int64_t>{0, kEverything}, "blocks kept per list row; 0: use p");
      v("p", p, Range<double>{0, 1}, "share of the block probability kept when k = 0");
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first blocks always kept");
      v("local", local, Range<int64_t>{1, 1 << 20}, "last blocks always kept, own block included");
      v("force_counts_in_budget", force_counts_in_budget, Range<bool>{false, true},
        "whether forced blocks use up k or p");
    }
  };
  struct Plan : AttentionPlanInfo {
    attention_common::WorkerScratch scratch;
    size_t score = 0, block_score = 0, gemm = 0, select = 0, query = 0, keys = 0;
    int64_t blocks = 0;
  };
  static Config FullBudget() {
    Config c;
    c.k = kEverything;
    return c;
  }
  static absl::StatusOr<OracleBlockTopK> Create(const Config& c) {
    if (c.k == 0 && c.p == 0)
      return absl::InvalidArgumentError("k and p are both 0; one must be positive");
    return OracleBlockTopK(c);
  }
  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan p;
    p.shape = s;
    p.blocks = (s.max_kv + config_.block - 1) / config_.block;
    p.max_rows = s.kv_heads * attention_common::MaxTiles(s, kTile);
    p.entry_slots = p.blocks;
    WorkspaceLayout one, all;
    p.score = one.Add<float>(kRows * s.max_kv);
    p.block_score = one.Add<float>(p.blocks);
    p.gemm = one.Add<float>(static_cast<int64_t>(kernels::GemmScratchFloats(s.head_dim)));
    p.select =
        one.Add<std::byte>(static_cast<int64_t>(attention_common::BlockScratchBytes(p.blocks)));
    p.query = one.Add<float>(kRows * s.head_dim);
    p.keys = one.Add<float>(kKeys * s.head_dim);
    p.scratch.Add(all, one, s.workers);
    p.workspace_bytes = all.bytes();
    return p;
  }
  absl::Status Run(const Plan& p, const AttentionInputs& in, std::byte*, const RunContext& ctx,
                   PlanWriter& out) const {
    const PlanHeader header = attention_common::HeaderOf(p.shape, in, ListScope::kKvHead, kTile);
    SLUICE_RETURN_IF_ERROR(out.Begin(header, Encoding::kBlocks, config_.block));
    const int64_t g = p.shape.heads / p.shape.kv_heads, d = p.shape.head_dim;
    attention_common::ForEachRow(header, *ctx.executor, [&](int64_t kv, int64_t tile, int w) {
      const auto q = attention_common::QueriesOf(header, tile);
      const int64_t visible = q.last / config_.block + 1, own = q.first / config_.block,
                    keys = q.last + 1;
      float* score = p.scratch.At<float>(ctx.workspace, w, p.score);
      float* mass = p.scratch.At<float>(ctx.workspace, w, p.block_score);
      float* query = p.scratch.At<float>(ctx.workspace, w, p.query);
      float* packed = p.scratch.At<float>(ctx.workspace, w, p.keys);
      std::fill(mass, mass + visible, 0.0f);
      for (int64_t h = kv * g; h < (kv + 1) * g; ++h) {
        for (int64_t i0 = 0; i0 < q.count(); i0 += kRows) {
          const int64_t rows = std::min(kRows, q.count() - i0);
          for (int64_t i = 0; i < rows; ++i) {
            const float* from = in.q.at(q.first - in.q_begin + i0 + i, h);
            for (int64_t x = 0; x < d; ++x) query[i * d + x] = from[x] * in.scale;
          }
          for (int64_t at = 0; at < keys; at += kKeys) {
            const int64_t n = std::min(kKeys, keys - at);
            for (int64_t j = 0; j < n; ++j)
              kernels::ConvertToF32(in.k.at(at + j, kv), in.k.dtype, d, packed + j * d);
            kernels::GemmNT(query, d, packed, d, rows, n, d, score + at, keys,
                            p.scratch.At<float>(ctx.workspace, w, p.gemm));
          }
          for (int64_t i = 0; i < rows; ++i) {
            float* s = score + i * keys;
            const int64_t seen = q.first + i0 + i + 1;
            kernels::Softmax(s, seen);
            for (int64_t j = 0; j < seen; ++j) mass[j / config_.block] += s[j];
          }
        }
      }
      const int64_t row = out.row_of(kv, tile);
      out.set_count(row,
                    attention_common::SelectBlocks(
                        attention_common::BlockRule{config_.k, config_.p, -1, config_.sink,
                                                    config_.local, config_.force_counts_in_budget},
                        mass, visible, own, p.scratch.At<std::byte>(ctx.workspace, w, p.select),
                        out.entries(row)));
    });
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kTile = 64, kRows = 16, kKeys = 64;
  explicit OracleBlockTopK(const Config& c) : config_(c) {}
  Config config_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_ORACLE_BLOCK_TOPK_ORACLE_BLOCK_TOPK_H_
