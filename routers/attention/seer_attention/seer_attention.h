#ifndef SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_H_
#define SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_H_
// SeerAttention: a small gate, distilled from the attention of a frozen model, says which blocks of
// keys hold the largest probabilities of a tile of queries.
//
//   PREP    queries and keys from before RoPE
//   SUM     of each block of keys the maxima, minima and mean, side by side, through a linear map
//           for each query head, turned to the block's start; of a tile's last block, of the keys
//           up to the tile's last query
//   SCORE   mean query, turned to its block's start, . key * dim^-1/2, softmax over key blocks, one
//           list a query head. Where the weights have maps of queries (query_maps): of a tile's
//           maxima, minima and mean through a map a query head, and keys through one a KV head
//   SELECT  gate above tau, or as many blocks a row as a target density wants
//
// gate=identity: a training-free substitute, to be named as such wherever it is measured, which
// needs no weights: the mean alone, through no map, one a KV head. Deviations by choice: the
// diagonal block is always kept (upstream may drop it), dense tail rows are a switch. A tile may be
// less than a block where the gate was trained so (ours; upstream: the block).
//
// NaN is never chosen but in the diagonal block and the dense tail; ties go to the lowest block.
// Planning costs 1 / (block tile) of QK^T and 3 dim^2 a block and head. State: a vector a block and
// head (a KV head for the identity).
#include <string>
#include <utility>
#include <vector>

#include "sluice/api/config.h"
#include "sluice/routers/attention/common/dims.h"
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/routers/attention/common/select.h"
#include "sluice/routers/attention/common/sum.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class SeerAttention {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "seer_attention",
      .title = "SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs",
      .arxiv = "2410.13276",
      .reads_pre_rope = true,
      .full_budget = "tau=-1",
      .small_budget = "block=16,tau=0.2"};

  enum class Gate : uint8_t { kLearned, kIdentity };
  struct Config {
    int64_t block = 64;
    int64_t dense_tail = 0;
    double tau = 2e-3;
    double density = 0;
    Gate gate = Gate::kLearned;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{16, 64}, "queries and keys per block");
      v("tau", tau, Range<double>{-1, 1},
        "keep blocks with gate probability above this (when density = 0); below 0: all");
      v("density", density, Range<double>{0, 1},
        "target share of the prompt's causal blocks: a row keeps "
        "max(1, floor((1 - sqrt(1 - r)) * blocks))");
      v("dense_tail", dense_tail, Range<int64_t>{0, 1024},
        "last query blocks of a prompt that stay dense (upstream: 2)");
      v("gate", gate, Choices{"learned", "identity"}, "the maps of the weights, or none");
    }
    bool Learns() const { return gate == Gate::kLearned; }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    BlockLayout gates;
    int64_t tile = 0;
    Scratch<float> query, last, pooled, scores, gemm;
    Scratch<std::byte> select;
  };
  // Maps of a layer; none of the identity.
  struct Layer {
    std::vector<float> key;    // [heads * dim, 3 dim], or [kv_heads * dim, 3 dim] beside query
    std::vector<float> query;  // [heads * dim, 3 dim], or empty
  };

  static WeightKeys Weights(const Config& c, const AttentionShape& s) {
    WeightKeys keys;
    if (!c.Learns()) return keys;
    const Dims dims = {s.layers, s.heads, s.kv_heads, s.head_dim, c.block, c.block, 0};
    DeclareDims(kTraits.name, kDims, dims, keys);
    for (int64_t layer = 0; layer < s.layers; ++layer)
      keys.tensors.push_back({MapName(layer, "key"), {3 * s.head_dim, s.heads * s.head_dim}});
    return keys;
  }

  static absl::StatusOr<SeerAttention> Create(const Config& c) {
    if (!c.Learns()) return SeerAttention(c);
    return absl::FailedPreconditionError(
        "needs trained weights and got none: give weights=FILE, or gate=identity for a "
        "training-free substitute");
  }
  static absl::StatusOr<SeerAttention> Create(const Config& c, const WeightSource& w) {
    if (!c.Learns())
      return absl::InvalidArgumentError(
          "weights were given, which gate=identity does not read; allowed: gate=learned");
    SeerAttention r(c);
    for (const auto& [name, member] : kDims) {
      SLUICE_ASSIGN_OR_RETURN(r.dims_.*member, w.Int(Key(name)));
    }
    SLUICE_RETURN_IF_ERROR(r.dims_.Check(c));
    const Dims& d = r.dims_;
    const auto read = [&](const std::string& name, int64_t streams) {
      const uint64_t shape[] = {static_cast<uint64_t>(3 * d.dim),
                                static_cast<uint64_t>(streams * d.dim)};
      return w.ReadF32(name, shape);
    };
    for (int64_t layer = 0; layer < d.layers; ++layer) {
      Layer& to = r.layers_.emplace_back();
      SLUICE_ASSIGN_OR_RETURN(to.key, read(MapName(layer, "key"), d.streams()));
      if (d.query_maps == 0) continue;
      SLUICE_ASSIGN_OR_RETURN(to.query, read(MapName(layer, "query"), d.heads));
    }
    return r;
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    SLUICE_RETURN_IF_ERROR(CheckShape(s));
    Plan plan(s);
    plan.tile = config_.Learns() ? dims_.tile : config_.block;
    const int64_t streams = Streams(s);
    const int64_t blocks = CeilDiv(s.max_kv, config_.block);
    plan.gates = {plan.AddState<float>(streams * blocks * s.head_dim), streams, blocks,
                  config_.block, s.head_dim};
    plan.query = plan.AddScratch<float>(s.head_dim);
    plan.last = plan.AddScratch<float>(s.head_dim);
    plan.pooled = plan.AddScratch<float>(3 * s.head_dim);
    plan.scores = plan.AddScratch<float>(blocks);
    plan.gemm = AddGemmScratch(plan, 3 * s.head_dim);
    plan.select = AddSelectScratch(plan, blocks);
    plan.layout.max_tile = plan.tile;
    plan.layout.AddBranch({.rows = s.heads * MaxTiles(s, plan.tile), .entry_slots = blocks});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    if (config_.Learns() && (in.layer < 0 || in.layer >= std::ssize(layers_)))
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", in.layer, " of ", layers_.size(), " with weights"));
    const int64_t d = in.q.dim;
    float* gates = RouterPlan::Get(state.layer, plan.gates.at);
    const auto gate_of = [&](int64_t stream, int64_t block) {
      return gates + (stream * plan.gates.blocks + block) * d;
    };
    plan.gates.ForEachNew(
        in.k_pre, state.keys, *ctx.executor, [&](int64_t stream, int64_t b, int64_t n, int worker) {
          GateKey(plan, in, stream, b, n, plan.Worker(ctx, worker), gate_of(stream, b));
        });

    // Every step after a prompt is such a call: its heads read the keys once for a group.
    if (InTail(in, in.q_positions.empty() ? in.q_begin : in.q_positions[0]))
      return WriteDense(plan.shape, in, plan.tile, out);

    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.encoding = Encoding::kBlocks,
                                                                .scope = ListScope::kQueryHead,
                                                                .tile = plan.tile,
                                                                .block = config_.block}));
    const int64_t heads_a_stream = in.q.heads / plan.gates.heads;
    ForEachRow(branch, plan, ctx, [&](int64_t head, int64_t tile, WorkerScratch scratch) {
      const TileQueries q = branch.Queries(tile);
      const int64_t visible = q.last / config_.block + 1;
      const int64_t own = q.first / config_.block;
      const int64_t row = branch.row_of(head, tile);
      if (InTail(in, q.last)) {
        branch.entries(row)[0] = ExactEntry(0, visible);
        branch.set_count(row, 1);
        return;
      }
      float* query = scratch[plan.query];
      GateQuery(in, RowsOf(branch, tile), head, scratch[plan.pooled], query, scratch[plan.gemm]);
      RotateTo(query, d, own * config_.block, in.rope_base);

      // What comes after the tile has no say, and chunks give the lists of one call.
      const int64_t stream = head / heads_a_stream;
      float* scores = scratch[plan.scores];
      const int64_t open = (q.last + 1) % config_.block;
      if (open == 0) {
        ScoreSoftmax(query, 1, gate_of(stream, 0), visible, d, scores, scratch[plan.gemm]);
      } else {
        float* last = scratch[plan.last];
        GateKey(plan, in, stream, visible - 1, open, scratch, last);
        ScoreSoftmaxLast(query, 1, gate_of(stream, 0), last, visible, d, scores,
                         scratch[plan.gemm]);
      }

      branch.set_count(row, SelectBlocks(Budget(in), scores, visible, own, scratch[plan.select],
                                         branch.entries(row)));
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
    int64_t tile = 0;
    int64_t query_maps = 0;

    int64_t streams() const { return query_maps == 0 ? heads : kv_heads; }
    absl::Status Check(const Config& c) const {
      constexpr int64_t kMost = 1 << 20;
      if (query_maps != 0 && query_maps != 1)
        return absl::InvalidArgumentError(
            absl::StrCat("sluice.seer_attention.query_maps is ", query_maps, "; allowed: 0, 1"));
      const bool sizes = layers > 0 && layers <= kMost && heads > 0 && heads <= kMost &&
                         kv_heads > 0 && heads % kv_heads == 0 && dim > 0 && dim <= kMost;
      if (!sizes || tile < 1 || tile > 64 || block % tile != 0)
        return absl::InvalidArgumentError(
            absl::StrCat("gates of ", layers, " layers, ", heads, " heads in ", kv_heads,
                         " groups, width ", dim, ", tiles of ", tile, " and blocks of ", block,
                         "; allowed: sizes above 0, tiles of 1 "
                         "to 64 that divide the block"));
      if (block != c.block)
        return absl::InvalidArgumentError(
            absl::StrCat("block=", c.block, ", and the weights are trained for blocks of ", block));
      return absl::OkStatus();
    }
  };
  static constexpr DimName<Dims> kDims[] = {
      {"layers", &Dims::layers},        {"heads", &Dims::heads},
      {"kv_heads", &Dims::kv_heads},    {"dim", &Dims::dim},
      {"block", &Dims::block},          {"tile", &Dims::tile},
      {"query_maps", &Dims::query_maps}};

  explicit SeerAttention(const Config& c) : config_(c) {}
  static std::string Key(const char* name) { return absl::StrCat("sluice.seer_attention.", name); }
  static std::string MapName(int64_t layer, const char* of) {
    return absl::StrCat("seer_attention.", layer, ".", of);
  }
  // Of keys that a block has.
  int64_t Streams(const AttentionShape& s) const {
    return config_.Learns() ? dims_.streams() : s.kv_heads;
  }

  absl::Status CheckShape(const AttentionShape& s) const {
    const Dims& d = dims_;
    if (!config_.Learns() || (d.layers >= s.layers && d.heads == s.heads &&
                              d.kv_heads == s.kv_heads && d.dim == s.head_dim))
      return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "gates of ", d.layers, " layers, ", d.heads, " heads in ", d.kv_heads, " groups, width ",
        d.dim, "; the model has ", s.layers, ", ", s.heads, " in ", s.kv_heads, ", ", s.head_dim));
  }

  // out [dim] = the gate's scaled query of a tile, not yet turned. pooled: scratch [3 dim].
  void GateQuery(const AttentionInputs& in, TileRows rows, int64_t head, float* pooled, float* out,
                 float* gemm) const {
    const int64_t d = in.q_pre.dim;
    const float scale = config_.Learns() ? 1 / std::sqrt(static_cast<float>(d)) : in.scale;
    if (dims_.query_maps == 0) {
      MeanQuery(in.q_pre, rows, head, scale, out);
      return;
    }
    using enum kernels::PoolKind;
    for (const kernels::PoolKind kind : {kMax, kMin, kMean}) {
      kernels::Pool(kind, in.q_pre.at(rows.begin, head), DType::kF32, in.q_pre.row_stride,
                    rows.count, d, pooled);
      pooled += d;
    }
    ScoreDot(pooled - 3 * d, 1, layers_[in.layer].query.data() + head * d * 3 * d, d, 3 * d, out,
             gemm);
    for (int64_t x = 0; x < d; ++x) out[x] *= scale;
  }

  // out [dim] = the gate's key of the first n keys of a block.
  void GateKey(const Plan& plan, const AttentionInputs& in, int64_t stream, int64_t block,
               int64_t n, WorkerScratch scratch, float* out) const {
    const int64_t d = in.k_pre.dim;
    const int64_t begin = block * config_.block;
    const auto pool = [&](kernels::PoolKind kind, int64_t head, float* to) {
      kernels::Pool(kind, in.k_pre.at(begin, head), in.k_pre.dtype, in.k_pre.row_stride, n, d, to);
    };
    if (config_.Learns()) {
      const int64_t kv = stream / (plan.gates.heads / in.k_pre.heads);
      float* pooled = scratch[plan.pooled];
      pool(kernels::PoolKind::kMax, kv, pooled);
      pool(kernels::PoolKind::kMin, kv, pooled + d);
      pool(kernels::PoolKind::kMean, kv, pooled + 2 * d);
      const float* map = layers_[in.layer].key.data() + stream * d * 3 * d;
      ScoreDot(pooled, 1, map, d, 3 * d, out, scratch[plan.gemm]);
    } else {
      pool(kernels::PoolKind::kMean, stream, out);
    }
    RotateTo(out, d, begin, in.rope_base);
  }

  // Density and tail are of the prompt, however it is fed; a host that does not say where it ends
  // is taken to be at its end.
  int64_t PromptBlocks(const AttentionInputs& in) const {
    return CeilDiv(std::max(in.prompt_end, in.kv_len()), config_.block);
  }
  // A tile whose last query stands there sees every block.
  bool InTail(const AttentionInputs& in, int64_t last) const {
    return last / config_.block >= PromptBlocks(in) - config_.dense_tail;
  }
  BlockBudget Budget(const AttentionInputs& in) const {
    BlockBudget budget = {.k = 0, .p = 0, .tau = config_.tau, .sink = 0, .local = 1};
    if (config_.density > 0) {
      const auto blocks = static_cast<double>(PromptBlocks(in));
      const double share = 1 - std::sqrt(1 - config_.density);
      budget.k = std::max<int64_t>(1, static_cast<int64_t>(share * blocks));
    }
    return budget;
  }

  Config config_;
  Dims dims_;
  std::vector<Layer> layers_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_H_
