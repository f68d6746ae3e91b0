#ifndef SLUICE_ROUTERS_ATTENTION_NSA_NSA_H_
#define SLUICE_ROUTERS_ATTENTION_NSA_NSA_H_
// NSA: three attentions of their own softmax, over compressed blocks, selected blocks and a window,
// summed with gates. Learned.
//
//   PREP    keys from before RoPE, an embedding of their place in the block added
//   SUM     overlapping blocks of l keys, one every `stride`, through a learned map; the compressed
//           key is then turned to the block's start. Values through a map of their own.
//   ATTEND  the compressed blocks that end before the query (branch 0)
//   SCORE   the probabilities of branch 0, carried over to selection blocks by how many strides
//           both share, summed over the group's heads
//   SELECT  the n best blocks up to the query's own; the first and the last are forced and count
//   ATTEND  the selected blocks (branch 1) and the last `window` keys (branch 2), causal
//   MERGE   sum of gate * output, gates = sigmoid of a linear map of the layer's input
//
// All branches share keys and values (the paper's model projects them anew for each); maps are a
// mean, a weighted sum or a linear map (the paper's is an MLP of unknown shape). Planning costs
// queries * keys / stride * width a head. State: one compressed row every `stride` keys.
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/routers/attention/common/select.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
// How many strides compressed block i (l keys, one every stride) shares with selection block j:
// weight[i - j * per_block + lead], 0 elsewhere.
struct OverlapStencil {
  std::vector<float> weight;
  int64_t lead = 0;       // compressed blocks that begin before the selection block
  int64_t per_block = 0;  // compressed blocks that begin in a selection block

  static OverlapStencil Make(int64_t l, int64_t stride, int64_t block) {
    const int64_t a = l / stride;
    const int64_t b = block / stride;
    OverlapStencil s = {.lead = a - 1, .per_block = b};
    for (int64_t at = 1 - a; at < b; ++at)
      s.weight.push_back(static_cast<float>(std::min(at + a, b) - std::max<int64_t>(at, 0)));
    return s;
  }
  // score [blocks] += what p [n] carries over.
  void AddTo(const float* p, int64_t n, int64_t blocks, float* score) const {
    for (int64_t j = 0; j < blocks; ++j) {
      for (int64_t w = 0; w < std::ssize(weight); ++w) {
        const int64_t i = j * per_block - lead + w;
        if (i >= 0 && i < n) score[j] += weight[w] * p[i];
      }
    }
  }
};

class Nsa {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "nsa",
      .title = "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention",
      .arxiv = "2502.11089",
      .token_causal = true,
      .reads_pre_rope = true,
      .reads_values = true,
      .reads_hidden = true,
      .full_budget = "n=2147483648,gates=fixed,gate_cmp=0,gate_slc=1,gate_win=0",
      .small_budget = "l=8,stride=4,block=16,n=3,local=1,window=16,tile=1"};

  enum class Map : uint8_t { kMean, kWeighted, kLinear };
  enum class Gates : uint8_t { kLearned, kFixed };
  struct Config {
    int64_t l = 32;
    int64_t stride = 16;
    int64_t block = 64;
    int64_t n = 16;
    int64_t init = 1;
    int64_t local = 2;
    int64_t window = 512;
    int64_t tile = 8;
    Map phi = Map::kLinear;
    bool position = true;
    Gates gates = Gates::kLearned;
    double gate_cmp = 0.5;
    double gate_slc = 0.5;
    double gate_win = 0.5;
    template <class V>
    void VisitFields(V&& v) {
      v("l", l, Range<int64_t>{1, 1024}, "keys per compressed block, a multiple of stride");
      v("stride", stride, Range<int64_t>{1, 1024}, "keys from one compressed block to the next");
      v("block", block, Range<int64_t>{1, 1024}, "keys per selection block, a multiple of l");
      v("n", n, Range<int64_t>{1, kEverything}, "blocks selected per query, forced ones included");
      v("init", init, Range<int64_t>{0, 1 << 20}, "first blocks always selected");
      v("local", local, Range<int64_t>{1, 1 << 20},
        "last blocks always selected, the query's own included");
      v("window", window, Range<int64_t>{1, kEverything}, "last keys that branch 2 sees");
      v("tile", tile, Range<int64_t>{1, 64},
        "queries that run together, as the union of their lists under row masks; no list changes");
      v("phi", phi, Choices{"mean", "weighted", "linear"}, "map of a block of keys or values");
      v("position", position, Range<bool>{false, true},
        "add a learned embedding of the place in the block to keys");
      v("gates", gates, Choices{"learned", "fixed"},
        "from hidden states, or gate_cmp, gate_slc and gate_win for every query");
      v("gate_cmp", gate_cmp, Range<double>{0, 1}, "fixed gate of the compressed blocks");
      v("gate_slc", gate_slc, Range<double>{0, 1}, "fixed gate of the selected blocks");
      v("gate_win", gate_win, Range<double>{0, 1}, "fixed gate of the window");
    }
    bool LearnsRows() const { return position || phi != Map::kMean; }
    bool LearnsGates() const { return gates == Gates::kLearned; }
  };
  // Weights of a layer; empty where the config needs none.
  struct Layer {
    std::vector<float> position;         // [kv_heads, l, d]
    std::vector<float> key_map;          // [kv_heads, l] or [kv_heads, d, l * d]
    std::vector<float> value_map;        // [kv_heads, l] or [kv_heads, dv, l * dv]
    std::vector<float> gate, gate_bias;  // [heads * 3, width], [heads * 3]
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    int64_t rows = 0;  // compressed, at most
    int64_t blocks = 0;
    State<float> keys, values;  // [kv_heads, rows, width]
    State<float> log_count;     // [rows]: all 0, as state begins
    Scratch<float> window, queries, prob, score, gate, gemm;
    Scratch<uint64_t> wanted;
    Scratch<std::byte> select;
  };

  static WeightKeys Weights(const Config& c, const AttentionShape& s) {
    const Dims dims = {s.layers, s.heads, s.kv_heads, s.head_dim, s.value_dim, s.width};
    WeightKeys keys;
    for (const auto& [name, member] : kDims) {
      if (c.LearnsRows() || c.LearnsGates())
        keys.ints.push_back({absl::StrCat("sluice.nsa.", name), dims.*member});
    }
    for (int64_t layer = 0; layer < s.layers; ++layer) {
      for (const Tensor& t : Tensors(c, dims, layer))
        keys.tensors.push_back({t.name, {t.shape.begin(), t.shape.end()}});
    }
    return keys;
  }

  static absl::StatusOr<Nsa> Create(const Config& c, const WeightSource& w) {
    SLUICE_RETURN_IF_ERROR(Check(c));
    Nsa r(c);
    if (!c.LearnsRows() && !c.LearnsGates()) return r;
    for (const auto& [name, member] : kDims) {
      SLUICE_ASSIGN_OR_RETURN(r.dims_.*member, w.Int(absl::StrCat("sluice.nsa.", name)));
      if (r.dims_.*member < 0 || r.dims_.*member > kMostOfADim)
        return absl::InvalidArgumentError(
            absl::StrCat("sluice.nsa.", name, " is ", r.dims_.*member));
    }
    for (int64_t layer = 0; layer < r.dims_.layers; ++layer) {
      Layer& to = r.layers_.emplace_back();
      for (const Tensor& t : Tensors(c, r.dims_, layer)) {
        SLUICE_ASSIGN_OR_RETURN(to.*t.member, w.ReadF32(t.name, t.shape));
      }
    }
    return r;
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    SLUICE_RETURN_IF_ERROR(CheckDims(s));
    Plan plan(s);
    const int64_t tile = config_.tile;
    plan.rows = Rows(s.max_kv);
    plan.blocks = CeilDiv(s.max_kv, config_.block);
    plan.keys = plan.AddState<float>(s.kv_heads * plan.rows * s.head_dim);
    plan.values = plan.AddState<float>(s.kv_heads * plan.rows * s.value_dim);
    plan.log_count = plan.AddState<float>(plan.rows);
    const int64_t wide = config_.l * std::max(s.head_dim, s.value_dim);
    plan.window = plan.AddScratch<float>(wide);
    plan.queries = plan.AddScratch<float>(tile * s.head_dim);
    plan.prob = plan.AddScratch<float>(tile * plan.rows);
    plan.score = plan.AddScratch<float>(tile * plan.blocks);
    plan.gate = plan.AddScratch<float>(s.heads * 3);
    plan.gemm = AddGemmScratch(plan, std::max(wide, s.width));
    plan.wanted = plan.AddScratch<uint64_t>(plan.blocks);
    plan.select = AddSelectScratch(plan, plan.blocks);

    const int64_t forced = config_.init + config_.local;
    const int64_t rows = s.kv_heads * MaxTiles(s, tile);
    plan.layout.max_tile = tile;
    plan.layout.weight_slots = 3 * s.max_queries * s.heads;
    plan.layout.AddBranch({.rows = rows, .entry_slots = tile + 1, .mask = 1});
    plan.layout.AddBranch({.rows = rows,
                           .entry_slots = std::min(plan.blocks, tile * (config_.n + forced)),
                           .mask = 1});
    plan.layout.AddBranch({.rows = rows, .entry_slots = 1});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    if (!layers_.empty() && (in.layer < 0 || in.layer >= std::ssize(layers_)))
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", in.layer, " of ", layers_.size(), " with weights"));
    const Layer& layer = layers_.empty() ? no_weights_ : layers_[in.layer];
    Compress(plan, in, layer, state, ctx);

    Begin(plan.shape, in, out, Merge::kWeightedSum);
    SLUICE_ASSIGN_OR_RETURN(const uint8_t table, Publish(plan, in, state, out));
    SLUICE_ASSIGN_OR_RETURN(BranchWriter compressed,
                            out.AddBranch({.tile = config_.tile, .mask = true}));
    SLUICE_ASSIGN_OR_RETURN(BranchWriter selected, out.AddBranch({.encoding = Encoding::kBlocks,
                                                                  .tile = config_.tile,
                                                                  .block = config_.block,
                                                                  .mask = true}));
    SLUICE_ASSIGN_OR_RETURN(BranchWriter window,
                            out.AddBranch({.tile = config_.tile, .window = config_.window}));
    ForEachRow(selected, plan, ctx, [&](int64_t kv, int64_t tile, WorkerScratch scratch) {
      const TileQueries q = selected.Queries(tile);
      if (Wants(config_.gate_cmp)) CompressedRow(q, table, kv, tile, compressed);
      if (Wants(config_.gate_slc)) {
        ScoreBlocks(plan, in, state, kv, RowsOf(selected, tile), q, scratch);
        SelectedRow(plan, q, kv, tile, scratch, selected);
      }
      if (Wants(config_.gate_win)) WindowRow(q, kv, tile, window);
    });
    WriteGates(plan, in, layer, ctx, out);
    return absl::OkStatus();
  }

 private:
  struct Dims {
    int64_t layers = 0;
    int64_t heads = 0;
    int64_t kv_heads = 0;
    int64_t head_dim = 0;
    int64_t value_dim = 0;
    int64_t width = 0;
  };
  struct Tensor {
    std::string name;
    std::vector<uint64_t> shape;  // fastest dimension first
    std::vector<float> Layer::*member;
  };
  static constexpr int64_t kMostOfADim = 1 << 20;
  static constexpr std::pair<const char*, int64_t Dims::*> kDims[] = {
      {"layers", &Dims::layers},     {"heads", &Dims::heads},         {"kv_heads", &Dims::kv_heads},
      {"head_dim", &Dims::head_dim}, {"value_dim", &Dims::value_dim}, {"width", &Dims::width}};

  explicit Nsa(const Config& c)
      : config_(c), stencil_(OverlapStencil::Make(c.l, c.stride, c.block)) {}

  static absl::Status Check(const Config& c) {
    if (c.l % c.stride != 0 || c.block % c.l != 0) {
      return absl::InvalidArgumentError(absl::StrCat("l=", c.l,
                                                     " must be a multiple of stride=", c.stride,
                                                     ", and block=", c.block, " one of l"));
    }
    const Config standard;
    const bool fixed = c.gate_cmp != standard.gate_cmp || c.gate_slc != standard.gate_slc ||
                       c.gate_win != standard.gate_win;
    if (c.LearnsGates() && fixed)
      return absl::InvalidArgumentError("gate values are given, but gates are learned");
    return absl::OkStatus();
  }

  absl::Status CheckDims(const AttentionShape& s) const {
    if (!config_.LearnsRows() && !config_.LearnsGates()) return absl::OkStatus();
    const Dims& d = dims_;
    const bool same = d.layers >= s.layers && d.heads == s.heads && d.kv_heads == s.kv_heads &&
                      d.head_dim == s.head_dim && d.value_dim == s.value_dim;
    if (same && (!config_.LearnsGates() || d.width == s.width)) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "weights of ", d.layers, " layers, ", d.heads, "/", d.kv_heads, " heads of widths ",
        d.head_dim, " and ", d.value_dim, ", hidden width ", d.width, "; the model has ", s.layers,
        ", ", s.heads, "/", s.kv_heads, ", ", s.head_dim, " and ", s.value_dim, ", ", s.width));
  }

  static std::vector<Tensor> Tensors(const Config& c, const Dims& dims, int64_t layer) {
    const auto u = [](int64_t n) { return static_cast<uint64_t>(n); };
    const std::string prefix = absl::StrCat("nsa.", layer, ".");
    const uint64_t l = u(c.l);
    const uint64_t kv = u(dims.kv_heads);
    const uint64_t d = u(dims.head_dim);
    const uint64_t dv = u(dims.value_dim);
    std::vector<Tensor> all;
    if (c.position) all.push_back({prefix + "position", {d, l, kv}, &Layer::position});
    if (c.phi == Map::kWeighted) {
      all.push_back({prefix + "key_map", {l, kv}, &Layer::key_map});
      all.push_back({prefix + "value_map", {l, kv}, &Layer::value_map});
    } else if (c.phi == Map::kLinear) {
      all.push_back({prefix + "key_map", {l * d, d, kv}, &Layer::key_map});
      all.push_back({prefix + "value_map", {l * dv, dv, kv}, &Layer::value_map});
    }
    if (c.LearnsGates()) {
      const uint64_t gates = u(dims.heads) * 3;
      all.push_back({prefix + "gate", {u(dims.width), gates}, &Layer::gate});
      all.push_back({prefix + "gate_bias", {gates}, &Layer::gate_bias});
    }
    return all;
  }

  // A branch whose fixed gate is 0 lists nothing.
  bool Wants(double gate) const { return config_.LearnsGates() || gate > 0; }
  // Complete compressed blocks of so many keys.
  int64_t Rows(int64_t keys) const {
    return keys < config_.l ? 0 : (keys - config_.l) / config_.stride + 1;
  }
  static float* RowOf(const Plan& plan, const RouterState& state, State<float> table, int64_t kv,
                      int64_t row, int64_t width) {
    return RouterPlan::Get(state.layer, table) + (kv * plan.rows + row) * width;
  }

  // Appends the compressed rows that new keys complete.
  void Compress(const Plan& plan, const AttentionInputs& in, const Layer& layer,
                const RouterState& state, const RunContext& ctx) const {
    const int64_t first = Rows(std::min(state.keys, in.kv_len()));
    const int64_t todo = Rows(in.kv_len()) - first;
    const int64_t d = in.k.dim;
    const int64_t dv = in.v.dim;
    ctx.executor->ParallelFor(
        plan.shape.kv_heads * todo, 4, [&](int64_t begin, int64_t end, int w) {
          const WorkerScratch scratch = plan.Worker(ctx, w);
          float* x = scratch[plan.window];
          for (int64_t i = begin; i < end; ++i) {
            const int64_t kv = i / todo;
            const int64_t row = first + i % todo;
            const int64_t start = row * config_.stride;
            KeysAsFloat(in.k_pre, kv, start, config_.l, x);
            for (int64_t j = 0; j < config_.l * d && config_.position; ++j)
              x[j] += layer.position[kv * config_.l * d + j];
            float* key = RowOf(plan, state, plan.keys, kv, row, d);
            Apply(layer.key_map, kv, x, d, key, scratch[plan.gemm]);
            RotateTo(key, d, start, in.rope_base);

            KeysAsFloat(in.v, kv, start, config_.l, x);
            Apply(layer.value_map, kv, x, dv, RowOf(plan, state, plan.values, kv, row, dv),
                  scratch[plan.gemm]);
          }
        });
  }
  // out [width] = the map of x [l, width].
  void Apply(const std::vector<float>& map, int64_t kv, const float* x, int64_t width, float* out,
             float* gemm) const {
    const int64_t l = config_.l;
    if (config_.phi == Map::kLinear) {
      ScoreDot(x, 1, map.data() + kv * width * l * width, width, l * width, out, gemm);
      return;
    }
    std::fill(out, out + width, 0.0f);
    for (int64_t j = 0; j < l; ++j) {
      const float share =
          config_.phi == Map::kMean ? 1.0f / static_cast<float>(l) : map[kv * l + j];
      for (int64_t i = 0; i < width; ++i) out[i] += share * x[j * width + i];
    }
  }

  // The table's level; 0 where there is no complete row yet.
  absl::StatusOr<uint8_t> Publish(const Plan& plan, const AttentionInputs& in,
                                  const RouterState& state, PlanBuilder& out) const {
    const int64_t n = Rows(in.kv_len());
    if (n == 0) return uint8_t{0};
    const int64_t kv = plan.shape.kv_heads;
    const int64_t d = in.k.dim;
    const int64_t dv = in.v.dim;
    SummaryTable table;
    table.k = {RouterPlan::Get(state.layer, plan.keys), DType::kF32, n, kv, d, d, plan.rows * d};
    table.v = {
        RouterPlan::Get(state.layer, plan.values), DType::kF32, n, kv, dv, dv, plan.rows * dv};
    table.log_count = {RouterPlan::Get(state.layer, plan.log_count), static_cast<size_t>(n)};
    return out.AddTable(table);
  }

  // Rows that all queries of the tile see, then those that only the later ones do.
  void CompressedRow(const TileQueries& q, uint8_t table, int64_t kv, int64_t tile,
                     BranchWriter branch) const {
    const int64_t row = branch.row_of(kv, tile);
    const int64_t all = Rows(q.first + 1);
    const int64_t some = Rows(q.last + 1);
    int64_t n = 0;
    const auto add = [&](int64_t start, int64_t len, uint64_t mask) {
      branch.mask(row)[n] = mask;
      branch.entries(row)[n++] = {static_cast<uint32_t>(start),
                                  static_cast<uint32_t>(len),
                                  EntryState::kSummary,
                                  MaskClass::kNone,
                                  table,
                                  0};
    };
    if (all > 0) add(0, all, ~uint64_t{0});
    for (int64_t r = all; r < some; ++r) {
      const int64_t first = r * config_.stride + config_.l - 1 - q.first;
      add(r, 1, ~uint64_t{0} << first);
    }
    branch.set_count(row, n);
  }

  // score [tile, blocks]: probabilities of the compressed blocks, carried over to selection blocks
  // and summed over the group's heads.
  void ScoreBlocks(const Plan& plan, const AttentionInputs& in, const RouterState& state,
                   int64_t kv, TileRows rows, const TileQueries& q, WorkerScratch scratch) const {
    const int64_t d = in.q.dim;
    const int64_t units = Rows(q.last + 1);
    const int64_t group = GroupSize(plan.shape);
    float* prob = scratch[plan.prob];
    std::fill_n(scratch[plan.score], rows.count * plan.blocks, 0.0f);
    for (int64_t head = kv * group; head < (kv + 1) * group && units > 0; ++head) {
      ScaledQueries(in.q, rows, head, in.scale, scratch[plan.queries]);
      ScoreDot(scratch[plan.queries], rows.count, RowOf(plan, state, plan.keys, kv, 0, d), units, d,
               prob, scratch[plan.gemm]);
      for (int64_t i = 0; i < rows.count; ++i) {
        const int64_t seen = Rows(q.first + i + 1);
        kernels::Softmax(prob + i * units, seen);
        stencil_.AddTo(prob + i * units, seen, (q.first + i) / config_.block + 1,
                       scratch[plan.score] + i * plan.blocks);
      }
    }
  }

  void SelectedRow(const Plan& plan, const TileQueries& q, int64_t kv, int64_t tile,
                   WorkerScratch scratch, BranchWriter branch) const {
    const BlockBudget budget = {.k = config_.n, .sink = config_.init, .local = config_.local};
    const int64_t row = branch.row_of(kv, tile);
    branch.set_count(row, SelectUnion(budget, config_.block, q, scratch[plan.score], plan.blocks,
                                      scratch[plan.wanted], scratch[plan.select],
                                      branch.entries(row), branch.mask(row)));
  }

  void WindowRow(const TileQueries& q, int64_t kv, int64_t tile, BranchWriter branch) const {
    const int64_t row = branch.row_of(kv, tile);
    const int64_t start = std::max<int64_t>(0, q.first - config_.window + 1);
    branch.entries(row)[0] =
        ExactEntry(start, q.last + 1 - start, MaskClass::kLowerBound, /*forced=*/true);
    branch.set_count(row, 1);
  }

  // Gates [branches, queries, heads].
  void WriteGates(const Plan& plan, const AttentionInputs& in, const Layer& layer,
                  const RunContext& ctx, PlanBuilder& out) const {
    const int64_t heads = plan.shape.heads;
    const double fixed[] = {config_.gate_cmp, config_.gate_slc, config_.gate_win};
    float* weights = out.branch_weights();
    ctx.executor->ParallelFor(in.q.rows, 8, [&](int64_t begin, int64_t end, int w) {
      const WorkerScratch scratch = plan.Worker(ctx, w);
      float* logit = scratch[plan.gate];
      for (int64_t i = begin; i < end; ++i) {
        if (config_.LearnsGates())
          ScoreDot(in.hidden.row(i), 1, layer.gate.data(), heads * 3, in.hidden.cols, logit,
                   scratch[plan.gemm]);
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t b = 0; b < 3; ++b) {
            const int64_t at = h * 3 + b;
            weights[(b * in.q.rows + i) * heads + h] =
                config_.LearnsGates() ? 1 / (1 + std::exp(-logit[at] - layer.gate_bias[at]))
                                      : static_cast<float>(fixed[b]);
          }
        }
      }
    });
  }

  Config config_;
  OverlapStencil stencil_;
  Dims dims_;
  std::vector<Layer> layers_;  // empty where the config needs no weights
  Layer no_weights_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_NSA_NSA_H_
