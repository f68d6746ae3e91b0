#ifndef SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_R_SEER_ATTENTION_R_H_
#define SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_R_SEER_ATTENTION_R_H_
// SeerAttention-R: the decode form of SeerAttention. A gate, distilled from the attention of a
// frozen model, says for every single query and group of heads which blocks of keys hold the
// largest probabilities. Learned; prompts stay dense.
//
//   PREP    queries and keys from before RoPE
//   SUM     of each whole block of keys the maxima, minima and mean, side by side, through a linear
//           map for each KV head, RMS norm, turned to the block's start
//   SCORE   the queries of a group, side by side, through a linear map for each KV head, RMS norm,
//           turned to the query's position, . key * dim^-1/2; softmax over the blocks
//   SELECT  the best k blocks, or those above tau; the query's own is kept and counts
//   ATTEND  the selected blocks, causal
//
// A block that the query has not seen whole has a key of zeros. prompt=gate routes the queries of a
// prompt likewise (upstream leaves them dense); a call that holds one of a dense prompt is dense.
// An epsilon of 1e-6 in the norms is inferred, and that rotated elements are interleaved pairs, as
// GGUF files of Llama have them. Upstream's norms can be left out; the weights here always have
// them.
//
// NaN is never chosen but in the own block; ties go to the lowest block. Planning costs 1 / (block
// group) of QK^T and group dim^2 a query and KV head. State: a vector a block and KV head.
#include <string>
#include <utility>
#include <vector>

#include "sluice/api/config.h"
#include "sluice/routers/attention/common/dims.h"
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/routers/attention/common/select.h"
#include "sluice/routers/attention/common/sum.h"
#include "sluice/runtime/kernels/rms_norm/rms_norm.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class SeerAttentionR {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "seer_attention_r",
      .title = "SeerAttention-R: Sparse Attention Adaptation for Long Reasoning",
      .arxiv = "2506.08889",
      .token_causal = true,
      .reads_pre_rope = true,
      .full_budget = "k=2147483648,prompt=gate",
      .small_budget = "block=16,k=4,prompt=gate"};

  enum class Prompt : uint8_t { kDense, kGate };
  struct Config {
    int64_t block = 64;
    int64_t k = 64;
    double tau = 5e-3;
    int64_t tile = 16;
    Prompt prompt = Prompt::kDense;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{16, 1024}, "keys per block");
      v("k", k, Range<int64_t>{0, kEverything},
        "blocks kept per query and KV head, its own included; 0: use tau");
      v("tau", tau, Range<double>{-1, 1},
        "keep blocks with gate probability above this when k = 0; below 0: all");
      v("tile", tile, Range<int64_t>{1, 64},
        "queries that run together, as the union of their lists under row masks; no list changes");
      v("prompt", prompt, Choices{"dense", "gate"}, "what the queries of a prompt see");
    }
  };
  // Maps of a layer.
  struct Layer {
    std::vector<float> key;         // [kv_heads * dim, 3 dim]
    std::vector<float> query;       // [kv_heads * dim, group * dim]
    std::vector<float> key_norm;    // [dim]
    std::vector<float> query_norm;  // [dim]
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    BlockLayout gates;
    Scratch<float> group, queries, pooled, scores, gemm;
    Scratch<uint64_t> wanted;
    Scratch<std::byte> select;
  };

  static WeightKeys Weights(const Config& c, const AttentionShape& s) {
    WeightKeys keys;
    const Dims dims = {s.layers, s.heads, s.kv_heads, s.head_dim, c.block};
    DeclareDims(kTraits.name, kDims, dims, keys);
    for (int64_t layer = 0; layer < s.layers; ++layer) {
      DeclareTensors(Tensors(dims, layer), keys);
    }
    return keys;
  }
  static absl::StatusOr<SeerAttentionR> Create(const Config& c, const WeightSource& w) {
    SeerAttentionR r(c);
    SLUICE_RETURN_IF_ERROR(ReadDims(w, kTraits.name, kDims, r.dims_));
    SLUICE_RETURN_IF_ERROR(r.dims_.Check(c));
    for (int64_t layer = 0; layer < r.dims_.layers; ++layer) {
      Layer& to = r.layers_.emplace_back();
      SLUICE_RETURN_IF_ERROR(ReadTensors(w, Tensors(r.dims_, layer), to));
    }
    return r;
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    SLUICE_RETURN_IF_ERROR(CheckShape(s));
    Plan plan(s);
    const int64_t d = s.head_dim;
    const int64_t blocks = CeilDiv(s.max_kv, config_.block);
    plan.gates = {plan.AddState<float>(s.kv_heads * blocks * d), s.kv_heads, blocks, config_.block,
                  d};
    plan.group = plan.AddScratch<float>(GroupSize(s) * d);
    plan.queries = plan.AddScratch<float>(config_.tile * d);
    plan.pooled = plan.AddScratch<float>(3 * d);
    plan.scores = plan.AddScratch<float>(config_.tile * blocks);
    plan.gemm = AddGemmScratch(plan, std::max<int64_t>(3, GroupSize(s)) * d);
    plan.wanted = plan.AddScratch<uint64_t>(blocks);
    plan.select = AddSelectScratch(plan, blocks);
    plan.layout.max_tile = config_.tile;
    plan.layout.AddBranch(
        {.rows = s.kv_heads * MaxTiles(s, config_.tile), .entry_slots = blocks, .mask = 1});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    if (in.layer < 0 || in.layer >= std::ssize(layers_))
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", in.layer, " of ", layers_.size(), " with weights"));
    float* gates = RouterPlan::Get(state.layer, plan.gates.at);
    const int64_t stride = plan.gates.blocks * plan.shape.head_dim;
    plan.gates.ForEachNew(in.k_pre, state.keys, *ctx.executor,
                          [&](int64_t kv, int64_t b, int64_t n, int worker) {
                            if (n < config_.block) return;  // no query has seen it whole
                            GateKey(plan, in, kv, b, plan.Worker(ctx, worker),
                                    gates + kv * stride + b * plan.shape.head_dim);
                          });

    if (config_.prompt == Prompt::kDense && in.q_begin < in.prompt_end)
      return WriteDense(plan.shape, in, config_.tile, out);

    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.encoding = Encoding::kBlocks,
                                                                .tile = config_.tile,
                                                                .block = config_.block,
                                                                .mask = true}));
    const BlockBudget budget = {.k = config_.k, .tau = config_.tau, .sink = 0, .local = 1};
    ForEachRow(branch, plan, ctx, [&](int64_t kv, int64_t tile, WorkerScratch scratch) {
      const TileQueries q = branch.Queries(tile);
      GateQueries(plan, in, kv, RowsOf(branch, tile), scratch);
      ScoreBlocks(plan, gates + kv * stride, q, scratch);
      const int64_t row = branch.row_of(kv, tile);
      branch.set_count(
          row, SelectUnion(budget, config_.block, q, scratch[plan.scores], plan.gates.blocks,
                           scratch[plan.wanted], scratch[plan.select], branch.entries(row),
                           branch.mask(row)));
    });
    return absl::OkStatus();
  }

 private:
  struct Dims {
    int64_t layers = 0;
    int64_t heads = 0;
    int64_t kv_heads = 0;
    int64_t dim = 0;
    int64_t block = 0;

    int64_t group() const { return heads / kv_heads; }
    absl::Status Check(const Config& c) const {
      if (layers < 1 || kv_heads < 1 || heads < 1 || heads % kv_heads != 0 || dim < 1)
        return absl::InvalidArgumentError(
            absl::StrCat("gates of ", layers, " layers, ", heads, " heads in ", kv_heads,
                         " groups, width ", dim, "; allowed: sizes above 0, whole groups"));
      if (block != c.block)
        return absl::InvalidArgumentError(
            absl::StrCat("block=", c.block, ", and the weights are trained for blocks of ", block));
      return absl::OkStatus();
    }
  };
  static constexpr float kEpsilon = 1e-6f;
  static constexpr DimName<Dims> kDims[] = {{"layers", &Dims::layers},
                                            {"heads", &Dims::heads},
                                            {"kv_heads", &Dims::kv_heads},
                                            {"dim", &Dims::dim},
                                            {"block", &Dims::block}};

  explicit SeerAttentionR(const Config& c) : config_(c) {}

  static std::vector<LayerTensor<Layer>> Tensors(const Dims& dims, int64_t layer) {
    const std::string prefix = absl::StrCat(kTraits.name, ".", layer, ".");
    const uint64_t dim = static_cast<uint64_t>(dims.dim);
    const uint64_t rows = static_cast<uint64_t>(dims.kv_heads) * dim;
    return {{prefix + "key", {3 * dim, rows}, &Layer::key},
            {prefix + "query", {static_cast<uint64_t>(dims.group()) * dim, rows}, &Layer::query},
            {prefix + "key_norm", {dim}, &Layer::key_norm},
            {prefix + "query_norm", {dim}, &Layer::query_norm}};
  }

  absl::Status CheckShape(const AttentionShape& s) const {
    const Dims& d = dims_;
    if (d.layers >= s.layers && d.heads == s.heads && d.kv_heads == s.kv_heads &&
        d.dim == s.head_dim)
      return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "gates of ", d.layers, " layers, ", d.heads, " heads in ", d.kv_heads, " groups, width ",
        d.dim, "; the model has ", s.layers, ", ", s.heads, " in ", s.kv_heads, ", ", s.head_dim));
  }

  // out [dim] = RMS norm of a KV head's map of x [n], turned to a position.
  void Map(const AttentionInputs& in, const std::vector<float>& map, const std::vector<float>& norm,
           int64_t kv, const float* x, int64_t n, int64_t position, float* gemm, float* out) const {
    const int64_t d = dims_.dim;
    ScoreDot(x, 1, map.data() + kv * d * n, d, n, out, gemm);
    kernels::RmsNorm(out, norm.data(), d, kEpsilon, out);
    RotateTo(out, d, position, in.rope_base);
  }

  // out [dim] = the gate's key of a whole block.
  void GateKey(const Plan& plan, const AttentionInputs& in, int64_t kv, int64_t block,
               WorkerScratch scratch, float* out) const {
    const int64_t d = in.k_pre.dim;
    const int64_t begin = block * config_.block;
    float* pooled = scratch[plan.pooled];
    using enum kernels::PoolKind;
    for (const kernels::PoolKind kind : {kMax, kMin, kMean}) {
      kernels::Pool(kind, in.k_pre.at(begin, kv), in.k_pre.dtype, in.k_pre.row_stride,
                    config_.block, d, pooled);
      pooled += d;
    }
    const Layer& layer = layers_[in.layer];
    Map(in, layer.key, layer.key_norm, kv, pooled - 3 * d, 3 * d, begin, scratch[plan.gemm], out);
  }

  // plan.queries [rows, dim]: the gate's scaled queries of a group.
  void GateQueries(const Plan& plan, const AttentionInputs& in, int64_t kv, TileRows rows,
                   WorkerScratch scratch) const {
    const int64_t d = in.q_pre.dim;
    const int64_t group = dims_.group();
    const float scale = 1 / std::sqrt(static_cast<float>(d));
    const Layer& layer = layers_[in.layer];
    for (int64_t i = 0; i < rows.count; ++i) {
      const int64_t row = rows.begin + i;
      float* side_by_side = scratch[plan.group];
      for (int64_t h = 0; h < group; ++h)
        ScaledQueries(in.q_pre, {row, 1}, kv * group + h, 1, side_by_side + h * d);
      float* query = scratch[plan.queries] + i * d;
      Map(in, layer.query, layer.query_norm, kv, side_by_side, group * d, in.q_begin + row,
          scratch[plan.gemm], query);
      for (int64_t x = 0; x < d; ++x) query[x] *= scale;
    }
  }

  // plan.scores [tile, blocks]: probabilities of the blocks up to each query's own; a block that it
  // does not see whole scores 0 before the softmax.
  void ScoreBlocks(const Plan& plan, const float* gates, const TileQueries& q,
                   WorkerScratch scratch) const {
    const int64_t d = dims_.dim;
    for (int64_t i = 0; i < q.count(); ++i) {
      const int64_t whole = (q.first + i + 1) / config_.block;
      const int64_t seen = (q.first + i) / config_.block + 1;
      float* scores = scratch[plan.scores] + i * plan.gates.blocks;
      if (whole > 0)
        ScoreDot(scratch[plan.queries] + i * d, 1, gates, whole, d, scores, scratch[plan.gemm]);
      if (whole < seen) scores[whole] = 0;
      kernels::Softmax(scores, seen);
    }
  }

  Config config_;
  Dims dims_;
  std::vector<Layer> layers_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_R_SEER_ATTENTION_R_H_
