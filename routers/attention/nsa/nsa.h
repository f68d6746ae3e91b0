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
#include "sluice/routers/attention/common/nsa_selection.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
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

  enum class Gates : uint8_t { kLearned, kFixed };
  struct Config {
    NsaRule rule;
    int64_t window = 512;
    int64_t tile = 8;
    Gates gates = Gates::kLearned;
    double gate_cmp = 0.5;
    double gate_slc = 0.5;
    double gate_win = 0.5;
    template <class V>
    void VisitFields(V&& v) {
      rule.VisitFields(v);
      v("window", window, Range<int64_t>{1, kEverything}, "last keys that branch 2 sees");
      v("tile", tile, Range<int64_t>{1, 64},
        "queries that run together, as the union of their lists under row masks; no list changes");
      v("gates", gates, Choices{"learned", "fixed"},
        "from hidden states, or gate_cmp, gate_slc and gate_win for every query");
      v("gate_cmp", gate_cmp, Range<double>{0, 1}, "fixed gate of the compressed blocks");
      v("gate_slc", gate_slc, Range<double>{0, 1}, "fixed gate of the selected blocks");
      v("gate_win", gate_win, Range<double>{0, 1}, "fixed gate of the window");
    }
    bool LearnsGates() const { return gates == Gates::kLearned; }
  };
  // Weights of a layer; empty where the config needs none.
  struct Layer : NsaKeyWeights {
    std::vector<float> value_map;        // [kv_heads, l] or [kv_heads, dv, l * dv]
    std::vector<float> gate, gate_bias;  // [heads * 3, width], [heads * 3]
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    NsaSelection::Layout selection;
    State<float> values;     // [kv_heads, rows, dv]
    State<float> log_count;  // [rows]: all 0, as state begins
    Scratch<float> gate;
  };

  static WeightKeys Weights(const Config& c, const AttentionShape& s) {
    WeightKeys keys;
    const NsaDims dims = NsaDims::Of(s);
    if (c.rule.Learns() || c.LearnsGates()) dims.AddTo(keys);
    for (int64_t layer = 0; layer < s.layers; ++layer) {
      DeclareTensors(Tensors(c, dims, layer), keys);
    }
    return keys;
  }

  static absl::StatusOr<Nsa> Create(const Config& c, const WeightSource& w) {
    SLUICE_RETURN_IF_ERROR(Check(c));
    Nsa r(c);
    if (!c.rule.Learns() && !c.LearnsGates()) return r;
    SLUICE_ASSIGN_OR_RETURN(r.dims_, NsaDims::Read(w));
    for (int64_t layer = 0; layer < r.dims_.layers; ++layer) {
      Layer& to = r.layers_.emplace_back();
      SLUICE_RETURN_IF_ERROR(ReadTensors(w, Tensors(c, r.dims_, layer), to));
    }
    return r;
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    if (config_.rule.Learns() || config_.LearnsGates())
      SLUICE_RETURN_IF_ERROR(dims_.Check(s, config_.LearnsGates()));
    Plan plan(s);
    const int64_t tile = config_.tile;
    plan.selection = selection_.AddTo(plan, tile);
    plan.values = plan.AddState<float>(s.kv_heads * plan.selection.rows * s.value_dim);
    plan.log_count = plan.AddState<float>(plan.selection.rows);
    plan.gate = plan.AddScratch<float>(s.heads * 3);

    const int64_t rows = s.kv_heads * MaxTiles(s, tile);
    plan.layout.max_tile = tile;
    plan.layout.weight_slots = 3 * s.max_queries * s.heads;
    plan.layout.AddBranch({.rows = rows, .entry_slots = tile + 1, .mask = 1});
    plan.layout.AddBranch(
        {.rows = rows, .entry_slots = selection_.MaxBlocks(plan.selection, tile), .mask = 1});
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
                                                                  .block = config_.rule.block,
                                                                  .mask = true}));
    SLUICE_ASSIGN_OR_RETURN(BranchWriter window,
                            out.AddBranch({.tile = config_.tile, .window = config_.window}));
    ForEachRow(selected, plan, ctx, [&](int64_t kv, int64_t tile, WorkerScratch scratch) {
      const TileQueries q = selected.Queries(tile);
      const int64_t row = selected.row_of(kv, tile);
      if (Wants(config_.gate_cmp)) CompressedRow(q, table, kv, tile, compressed);
      if (Wants(config_.gate_slc)) {
        selected.set_count(
            row, selection_.Select(plan.selection, in, state, kv, RowsOf(selected, tile), q,
                                   scratch, selected.entries(row), selected.mask(row)));
      }
      if (Wants(config_.gate_win)) WindowRow(q, kv, tile, window);
    });
    WriteGates(plan, in, layer, ctx, out);
    return absl::OkStatus();
  }

 private:
  explicit Nsa(const Config& c) : config_(c), selection_(c.rule) {}

  static absl::Status Check(const Config& c) {
    SLUICE_RETURN_IF_ERROR(c.rule.Check());
    const Config standard;
    const bool fixed = c.gate_cmp != standard.gate_cmp || c.gate_slc != standard.gate_slc ||
                       c.gate_win != standard.gate_win;
    if (c.LearnsGates() && fixed)
      return absl::InvalidArgumentError("gate values are given, but gates are learned");
    return absl::OkStatus();
  }

  static std::vector<LayerTensor<Layer>> Tensors(const Config& c, const NsaDims& dims,
                                                 int64_t layer) {
    const auto u = [](int64_t n) { return static_cast<uint64_t>(n); };
    const std::string prefix = absl::StrCat("nsa.", layer, ".");
    const uint64_t l = u(c.rule.l);
    const uint64_t kv = u(dims.kv_heads);
    const uint64_t dv = u(dims.value_dim);
    std::vector<LayerTensor<Layer>> all = NsaKeyTensors<Layer>(c.rule, dims, layer);
    if (c.rule.phi == NsaRule::Map::kWeighted)
      all.push_back({prefix + "value_map", {l, kv}, &Layer::value_map});
    if (c.rule.phi == NsaRule::Map::kLinear)
      all.push_back({prefix + "value_map", {l * dv, dv, kv}, &Layer::value_map});
    if (c.LearnsGates()) {
      const uint64_t gates = u(dims.heads) * 3;
      all.push_back({prefix + "gate", {u(dims.width), gates}, &Layer::gate});
      all.push_back({prefix + "gate_bias", {gates}, &Layer::gate_bias});
    }
    return all;
  }

  // A branch whose fixed gate is 0 lists nothing.
  bool Wants(double gate) const { return config_.LearnsGates() || gate > 0; }

  // Appends the compressed rows that new keys complete.
  void Compress(const Plan& plan, const AttentionInputs& in, const Layer& layer,
                const RouterState& state, const RunContext& ctx) const {
    const int64_t dv = in.v.dim;
    const auto compress = [&](int64_t kv, int64_t row, int64_t start, WorkerScratch scratch) {
      selection_.CompressKey(plan.selection, in, layer, state, kv, row, scratch);
      float* x = scratch[plan.selection.window];
      float* value =
          RouterPlan::Get(state.layer, plan.values) + (kv * plan.selection.rows + row) * dv;
      KeysAsFloat(in.v, kv, start, config_.rule.l, x);
      config_.rule.Apply(layer.value_map, kv, x, dv, value, scratch[plan.selection.gemm]);
    };
    selection_.ForEachNewRow(plan, in, state, ctx, compress);
  }

  // The table's level; 0 where there is no complete row yet.
  absl::StatusOr<uint8_t> Publish(const Plan& plan, const AttentionInputs& in,
                                  const RouterState& state, PlanBuilder& out) const {
    const int64_t n = config_.rule.Rows(in.kv_len());
    if (n == 0) return uint8_t{0};
    const int64_t kv = plan.shape.kv_heads;
    const int64_t d = in.k.dim;
    const int64_t dv = in.v.dim;
    SummaryTable table;
    table.k = {RouterPlan::Get(state.layer, plan.selection.keys),
               DType::kF32,
               n,
               kv,
               d,
               d,
               plan.selection.rows * d};
    table.v = {RouterPlan::Get(state.layer, plan.values),
               DType::kF32,
               n,
               kv,
               dv,
               dv,
               plan.selection.rows * dv};
    table.log_count = {RouterPlan::Get(state.layer, plan.log_count), static_cast<size_t>(n)};
    return out.AddTable(table);
  }

  // Rows that all queries of the tile see, then those that only the later ones do.
  void CompressedRow(const TileQueries& q, uint8_t table, int64_t kv, int64_t tile,
                     BranchWriter branch) const {
    const int64_t row = branch.row_of(kv, tile);
    const int64_t all = config_.rule.Rows(q.first + 1);
    const int64_t some = config_.rule.Rows(q.last + 1);
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
      const int64_t first = r * config_.rule.stride + config_.rule.l - 1 - q.first;
      add(r, 1, ~uint64_t{0} << first);
    }
    branch.set_count(row, n);
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
                   scratch[plan.selection.gemm]);
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
  NsaSelection selection_;
  NsaDims dims_;
  std::vector<Layer> layers_;  // empty where the config needs no weights
  Layer no_weights_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_NSA_NSA_H_
