#ifndef SLUICE_ROUTERS_ATTENTION_MSA_MSA_H_
#define SLUICE_ROUTERS_ATTENTION_MSA_MSA_H_
// MiniMax sparse attention (MSA): every group of heads has an index head of its own, whose highest
// product with any key of a block ranks the block. Learned, for prefill and decode.
//
//   PREP    index queries and keys: linear maps of the layer's input, RMS norm, RoPE of the first
//           elements
//   SCORE   the largest product of a query with the index keys of a block
//   SELECT  the k best blocks of each query and group; the query's own counts and comes first
//   ATTEND  the selected blocks, causal
//
// index=own: a training-free substitute, to be named as such wherever it is measured, which needs
// no weights: the mean of a group's queries against its KV head's keys, both after RoPE. It costs
// 1 / group of QK^T. Upstream, one index key serves all groups; a file may have one for each.
// Inferred: that norms have an epsilon of 1e-6, and that rotated elements are interleaved pairs, as
// GGUF files of Llama have them. Keys that a host brought without its layers' inputs (a cache from
// elsewhere) have no index: their blocks are always kept.
//
// Products of NaN are passed over; ties go to the first block. Planning costs queries * keys * dim
// a group. State: an index key of fp32 a key.
#include <string>
#include <utility>
#include <vector>

#include "sluice/api/config.h"
#include "sluice/routers/attention/common/dims.h"
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/routers/attention/common/select.h"
#include "sluice/runtime/kernels/rms_norm/rms_norm.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Msa {
 public:
  static constexpr AttentionTraits kTraits = {.name = "msa",
                                              .title = "MiniMax Sparse Attention",
                                              .arxiv = "2606.13392",
                                              .token_causal = true,
                                              .reads_hidden = true,
                                              .full_budget = "k=2147483648",
                                              .small_budget = "block=16,k=4"};

  enum class Index : uint8_t { kLearned, kOwn };
  struct Config {
    int64_t block = 128;
    int64_t k = 16;
    int64_t sink = 0;
    int64_t local = 1;
    int64_t tile = 16;
    Index index = Index::kLearned;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{1, 1024}, "keys per block");
      v("k", k, Range<int64_t>{1, kEverything}, "blocks kept per query, forced ones included");
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first blocks always kept");
      v("local", local, Range<int64_t>{1, 1 << 20}, "last blocks always kept, own block included");
      v("tile", tile, Range<int64_t>{1, 64},
        "queries that run together, as the union of their lists under row masks; no list changes");
      v("index", index, Choices{"learned", "own"},
        "index queries and keys of the weights, or the attention's own");
    }
    bool Learns() const { return index == Index::kLearned; }
  };
  // Index projections of a layer.
  struct Layer {
    std::vector<float> query;       // [kv_heads * dim, width]
    std::vector<float> key;         // [key_heads * dim, width]
    std::vector<float> query_norm;  // [dim]
    std::vector<float> key_norm;    // [dim]
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    int64_t blocks = 0;
    int64_t dim = 0;
    State<int64_t> without;  // the first keys, which have no index
    State<float> index;      // [key_heads, keys, dim]
    Scratch<float> queries, keys, products, scores, gemm;
    Scratch<uint64_t> wanted;
    Scratch<std::byte> select;
  };

  static WeightKeys Weights(const Config& c, const AttentionShape& s) {
    WeightKeys keys;
    if (!c.Learns()) return keys;
    const Dims dims = {.layers = s.layers,
                       .kv_heads = s.kv_heads,
                       .key_heads = 1,
                       .dim = s.head_dim,
                       .rope_dim = s.head_dim / 4 * 2,
                       .width = s.width};
    DeclareDims(kTraits.name, kDims, dims, keys);
    for (int64_t layer = 0; layer < s.layers; ++layer) {
      DeclareTensors(Tensors(dims, layer), keys);
    }
    return keys;
  }

  static absl::StatusOr<Msa> Create(const Config& c) {
    if (!c.Learns()) return Msa(c);
    return absl::FailedPreconditionError(
        "needs trained weights and got none: give weights=FILE, or index=own for a training-free "
        "substitute");
  }
  static absl::StatusOr<Msa> Create(const Config& c, const WeightSource& w) {
    Msa r(c);
    if (!c.Learns()) return r;
    SLUICE_RETURN_IF_ERROR(ReadDims(w, kTraits.name, kDims, r.dims_));
    SLUICE_RETURN_IF_ERROR(r.dims_.Check());
    for (int64_t layer = 0; layer < r.dims_.layers; ++layer) {
      Layer& to = r.layers_.emplace_back();
      SLUICE_RETURN_IF_ERROR(ReadTensors(w, Tensors(r.dims_, layer), to));
    }
    return r;
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    SLUICE_RETURN_IF_ERROR(CheckDims(s));
    Plan plan(s);
    plan.blocks = CeilDiv(s.max_kv, config_.block);
    plan.dim = config_.Learns() ? dims_.dim : s.head_dim;
    if (config_.Learns()) {
      plan.without = plan.AddState<int64_t>(1);
      plan.index = plan.AddState<float>(dims_.key_heads * s.max_kv * plan.dim);
    }
    plan.queries = plan.AddScratch<float>(config_.tile * plan.dim);
    plan.keys = plan.AddScratch<float>(config_.block * plan.dim);
    plan.products = plan.AddScratch<float>(config_.tile * config_.block);
    plan.scores = plan.AddScratch<float>(config_.tile * plan.blocks);
    plan.gemm = AddGemmScratch(plan, std::max(plan.dim, s.width));
    plan.wanted = plan.AddScratch<uint64_t>(plan.blocks);
    plan.select = AddSelectScratch(plan, plan.blocks);
    plan.layout.max_tile = config_.tile;
    plan.layout.AddBranch(
        {.rows = s.kv_heads * MaxTiles(s, config_.tile), .entry_slots = plan.blocks, .mask = 1});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    if (config_.Learns() && (in.layer < 0 || in.layer >= std::ssize(layers_)))
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", in.layer, " of ", layers_.size(), " with weights"));
    BlockBudget budget = {.k = config_.k, .sink = config_.sink, .local = config_.local};
    if (config_.Learns()) {
      AppendKeys(plan, in, state, ctx);
      const int64_t without = *RouterPlan::Get(state.layer, plan.without);
      budget.sink = std::max(budget.sink, CeilDiv(without, config_.block));
    }
    const KvView keys = config_.Learns() ? IndexKeys(plan, in.kv_len(), state) : in.k;

    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.encoding = Encoding::kBlocks,
                                                                .tile = config_.tile,
                                                                .block = config_.block,
                                                                .mask = true}));
    ForEachRow(branch, plan, ctx, [&](int64_t kv, int64_t tile, WorkerScratch scratch) {
      const TileQueries q = branch.Queries(tile);
      IndexQueries(plan, in, kv, RowsOf(branch, tile), scratch);
      ScoreBlocks(plan, keys, keys.heads == 1 ? 0 : kv, q, scratch);
      const int64_t row = branch.row_of(kv, tile);
      branch.set_count(row, SelectUnion(budget, config_.block, q, scratch[plan.scores], plan.blocks,
                                        scratch[plan.wanted], scratch[plan.select],
                                        branch.entries(row), branch.mask(row)));
    });
    return absl::OkStatus();
  }

 private:
  struct Dims {
    int64_t layers = 0;
    int64_t kv_heads = 0;
    int64_t key_heads = 0;
    int64_t dim = 0;
    int64_t rope_dim = 0;
    int64_t width = 0;

    absl::Status Check() const {
      const bool fits = dim > 0 && rope_dim % 2 == 0 && rope_dim <= dim &&
                        (key_heads == 1 || key_heads == kv_heads);
      if (fits) return absl::OkStatus();
      return absl::InvalidArgumentError(absl::StrCat(
          "index of width ", dim, ", ", rope_dim, " of it rotated, ", key_heads, " key heads for ",
          kv_heads,
          " groups; allowed: a positive width, an even part of it, and 1 key head or one "
          "a group"));
    }
  };
  static constexpr float kEpsilon = 1e-6f;
  static constexpr DimName<Dims> kDims[] = {
      {"layers", &Dims::layers}, {"kv_heads", &Dims::kv_heads}, {"key_heads", &Dims::key_heads},
      {"dim", &Dims::dim},       {"rope_dim", &Dims::rope_dim}, {"width", &Dims::width}};

  explicit Msa(const Config& c) : config_(c) {}

  static std::vector<LayerTensor<Layer>> Tensors(const Dims& dims, int64_t layer) {
    const std::string prefix = absl::StrCat("msa.", layer, ".");
    const uint64_t width = static_cast<uint64_t>(dims.width);
    const uint64_t dim = static_cast<uint64_t>(dims.dim);
    const uint64_t queries = static_cast<uint64_t>(dims.kv_heads) * dim;
    const uint64_t keys = static_cast<uint64_t>(dims.key_heads) * dim;
    return {{prefix + "query", {width, queries}, &Layer::query},
            {prefix + "key", {width, keys}, &Layer::key},
            {prefix + "query_norm", {dim}, &Layer::query_norm},
            {prefix + "key_norm", {dim}, &Layer::key_norm}};
  }

  absl::Status CheckDims(const AttentionShape& s) const {
    if (!config_.Learns()) return absl::OkStatus();
    const Dims& d = dims_;
    if (d.layers >= s.layers && d.kv_heads == s.kv_heads && d.width == s.width)
      return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("weights of ", d.layers, " layers, ", d.kv_heads, " KV heads, hidden width ",
                     d.width, "; the model has ", s.layers, ", ", s.kv_heads, " and ", s.width));
  }

  // x [dim] at a position: norm, then RoPE of the first elements.
  void Finish(const AttentionInputs& in, const std::vector<float>& norm, int64_t position,
              float* x) const {
    kernels::RmsNorm(x, norm.data(), dims_.dim, kEpsilon, x);
    RotateTo(x, dims_.rope_dim, position, in.rope_base);
  }

  // Index keys of the call's tokens. Those before it that no call brought have none.
  void AppendKeys(const Plan& plan, const AttentionInputs& in, const RouterState& state,
                  const RunContext& ctx) const {
    const int64_t known = std::min(state.keys, in.q_begin);
    int64_t& without = *RouterPlan::Get(state.layer, plan.without);
    without = known < in.q_begin ? in.q_begin : std::min(without, known);
    float* index = RouterPlan::Get(state.layer, plan.index);
    const Layer& layer = layers_[in.layer];
    const int64_t d = dims_.dim;
    ctx.executor->ParallelFor(in.q.rows, 8, [&](int64_t begin, int64_t end, int w) {
      const WorkerScratch scratch = plan.Worker(ctx, w);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t position = in.q_begin + i;
        for (int64_t head = 0; head < dims_.key_heads; ++head) {
          float* key = index + (head * plan.shape.max_kv + position) * d;
          ScoreDot(in.hidden.row(i), 1, layer.key.data() + head * d * dims_.width, d, dims_.width,
                   key, scratch[plan.gemm]);
          Finish(in, layer.key_norm, position, key);
        }
      }
    });
  }
  KvView IndexKeys(const Plan& plan, int64_t n, const RouterState& state) const {
    const int64_t d = dims_.dim;
    return {RouterPlan::Get(state.layer, plan.index),
            DType::kF32,
            n,
            dims_.key_heads,
            d,
            d,
            plan.shape.max_kv * d};
  }

  // plan.queries [rows, dim]: a group's index queries.
  void IndexQueries(const Plan& plan, const AttentionInputs& in, int64_t kv, TileRows rows,
                    WorkerScratch scratch) const {
    const int64_t d = plan.dim;
    const int64_t group = GroupSize(plan.shape);
    for (int64_t i = 0; i < rows.count; ++i) {
      float* query = scratch[plan.queries] + i * d;
      if (config_.Learns()) {
        const Layer& layer = layers_[in.layer];
        ScoreDot(in.hidden.row(rows.begin + i), 1, layer.query.data() + kv * d * dims_.width, d,
                 dims_.width, query, scratch[plan.gemm]);
        Finish(in, layer.query_norm, in.q_begin + rows.begin + i, query);
        continue;
      }
      std::fill(query, query + d, 0.0f);
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
        const float* q = in.q.at(rows.begin + i, h);
        for (int64_t x = 0; x < d; ++x) query[x] += q[x] / static_cast<float>(group);
      }
    }
  }

  // plan.scores [tile, blocks] of the blocks before the last query's own, which is forced and not
  // scored. Who sees a part of a block has it for its own, and its score is not asked for.
  void ScoreBlocks(const Plan& plan, const KvView& keys, int64_t head, const TileQueries& q,
                   WorkerScratch scratch) const {
    const int64_t own = q.last / config_.block;
    const int64_t n = config_.block;
    float* products = scratch[plan.products];
    for (int64_t b = 0; b < own; ++b) {
      KeysAsFloat(keys, head, b * n, n, scratch[plan.keys]);
      ScoreDot(scratch[plan.queries], q.count(), scratch[plan.keys], n, plan.dim, products,
               scratch[plan.gemm]);
      for (int64_t i = 0; i < q.count(); ++i) {
        float most = -HUGE_VALF;
        for (int64_t j = 0; j < n; ++j) most = std::max(most, products[i * n + j]);
        scratch[plan.scores][i * plan.blocks + b] = most;
      }
    }
    for (int64_t i = 0; i < q.count(); ++i) scratch[plan.scores][i * plan.blocks + own] = 0;
  }

  Config config_;
  Dims dims_;
  std::vector<Layer> layers_;  // empty with index=own
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_MSA_MSA_H_
