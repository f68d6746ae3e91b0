#ifndef SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_H_
#define SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_H_
// The routing shape of SeerAttention (arXiv 2410.13276): queries and keys are pooled before RoPE,
// one gate vector a block, RoPE at block starts, softmax over key blocks, then an absolute
// threshold or a target density per row; one list a query head. The gate's linear maps are the
// identity on the mean-pooled stream: a training-free substitute, to be named as such wherever it
// is measured. Deviations by choice: the diagonal block is always kept (upstream may drop it), and
// dense tail rows are a switch.
#include "sluice/api/attention_router.h"
#include "sluice/routers/attention/common/planning.h"
#include "sluice/runtime/kernels/gemm/gemm.h"
#include "sluice/runtime/kernels/softmax/softmax.h"

SLUICE_BEGIN_NAMESPACE
class SeerAttention {
 public:
  static constexpr absl::string_view kName = "seer_attention";
  static constexpr bool kExactAtFullBudget = true, kTokenCausal = false, kNeedsPreRope = true;
  struct Config {
    int64_t block = 64, dense_tail = 0;
    double tau = 2e-3, density = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{16, 64}, "queries and keys per block");
      v("tau", tau, Range<double>{-1, 1},
        "keep blocks with gate probability above this (when density = 0); below 0: all");
      v("density", density, Range<double>{0, 1},
        "target share of causal blocks: a row keeps max(1, floor((1 - sqrt(1 - r)) * blocks))");
      v("dense_tail", dense_tail, Range<int64_t>{0, 1024},
        "last query blocks of a call that stay dense (upstream: 2)");
    }
  };
  struct Plan : AttentionPlanInfo {
    attention_common::WorkerScratch scratch;
    size_t score = 0, gemm = 0, select = 0, gate = 0, angle = 0;
    int64_t blocks = 0;
  };
  static Config FullBudget() {
    Config c;
    c.tau = -1;
    return c;
  }
  static absl::StatusOr<SeerAttention> Create(const Config& c) { return SeerAttention(c); }
  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan p;
    p.shape = s;
    p.blocks = (s.max_kv + config_.block - 1) / config_.block;
    p.state_bytes =
        attention_common::BlockMeans::Bytes(s.kv_heads, s.max_kv, config_.block, s.head_dim);
    p.max_rows = s.heads * attention_common::MaxTiles(s, config_.block);
    p.entry_slots = p.blocks;
    WorkspaceLayout one, all;
    p.score = one.Add<float>(p.blocks);
    p.gemm = one.Add<float>(static_cast<int64_t>(kernels::GemmScratchFloats(s.head_dim)));
    p.select =
        one.Add<std::byte>(static_cast<int64_t>(attention_common::BlockScratchBytes(p.blocks)));
    p.gate = one.Add<float>(s.head_dim);
    p.angle = one.Add<float>(s.head_dim);
    p.scratch.Add(all, one, s.workers);
    p.workspace_bytes = all.bytes();
    return p;
  }
  absl::Status Run(const Plan& p, const AttentionInputs& in, std::byte* state,
                   const RunContext& ctx, PlanWriter& out) const {
    if (in.q_pre.empty() || in.k_pre.empty())
      return absl::FailedPreconditionError(
          "seer_attention pools queries and keys before RoPE: the host must pass q_pre and k_pre");
    const PlanHeader header =
        attention_common::HeaderOf(p.shape, in, ListScope::kQueryHead, config_.block);
    SLUICE_RETURN_IF_ERROR(out.Begin(header, Encoding::kBlocks, config_.block));
    const int64_t g = p.shape.heads / p.shape.kv_heads;
    const size_t d = static_cast<size_t>(p.shape.head_dim);
    attention_common::BlockMeans gates(state, p.shape.kv_heads, p.shape.max_kv, config_.block,
                                       p.shape.head_dim);
    gates.Append(in.k_pre, *ctx.executor, [&](float* gate, int64_t block) {
      Rotate(gate, d, block * config_.block, in.rope_base);
    });
    attention_common::ForEachRow(header, *ctx.executor, [&](int64_t head, int64_t tile, int w) {
      const auto q = attention_common::QueriesOf(header, tile);
      const int64_t visible = q.last / config_.block + 1, own = q.first / config_.block,
                    kv = head / g;
      float* score = p.scratch.At<float>(ctx.workspace, w, p.score);
      float* gate = p.scratch.At<float>(ctx.workspace, w, p.gate);
      kernels::Pool(kernels::PoolKind::kMean, in.q_pre.at(q.first - in.q_begin, head), DType::kF32,
                    in.q_pre.row_stride, q.count(), d, gate);
      Rotate(gate, d, own * config_.block, in.rope_base);
      for (size_t x = 0; x < d; ++x) gate[x] *= in.scale;
      kernels::GemmNT(gate, d, gates.At(kv, 0), d, 1, visible, d, score, visible,
                      p.scratch.At<float>(ctx.workspace, w, p.gemm));
      kernels::Softmax(score, visible);
      attention_common::BlockRule rule{0, 0, config_.tau, 0, 1, false};
      if (config_.density > 0) {
        const int64_t blocks = (in.kv_len() + config_.block - 1) / config_.block;
        const double total = static_cast<double>(blocks);
        rule.k = std::max<int64_t>(
            1, static_cast<int64_t>((1 - std::sqrt(1 - config_.density)) * total));
        rule.count_forced = true;
      }
      if (header.num_tiles() - tile <= config_.dense_tail) rule = {0, 0, -1, 0, 1, false};
      const int64_t row = out.row_of(head, tile);
      out.set_count(
          row, attention_common::SelectBlocks(rule, score, visible, own,
                                              p.scratch.At<std::byte>(ctx.workspace, w, p.select),
                                              out.entries(row)));
    });
    return absl::OkStatus();
  }

 private:
  explicit SeerAttention(const Config& c) : config_(c) {}
  static void Rotate(float* x, size_t d, int64_t position, float base) {
    if (base <= 0) return;
    for (size_t i = 0; i < d / 2; ++i) {  // interleaved pairs, as GGUF Llama files store them
      const double angle = static_cast<double>(position) *
                           std::pow(static_cast<double>(base),
                                    -2.0 * static_cast<double>(i) / static_cast<double>(d));
      const float c = static_cast<float>(std::cos(angle)), s = static_cast<float>(std::sin(angle)),
                  a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * c - b * s;
      x[2 * i + 1] = a * s + b * c;
    }
  }
  Config config_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_H_
