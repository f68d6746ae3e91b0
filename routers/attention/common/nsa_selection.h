#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_NSA_SELECTION_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_NSA_SELECTION_H_
// How NSA and FSA select blocks, and what they read of a checkpoint to do so.
//
//   PREP    keys from before RoPE, an embedding of their place in the block added
//   SUM     overlapping blocks of l keys, one every `stride`, through a learned map, turned to the
//           block's start
//   SCORE   the softmax over the compressed blocks that end before the query, carried over to
//           selection blocks by how many strides both share, summed over the group's heads
//   SELECT  the n best blocks up to the query's own; the first and the last are forced and count
#include <string>
#include <utility>
#include <vector>

#include "sluice/api/config.h"
#include "sluice/routers/attention/common/dims.h"
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

struct NsaRule {
  enum class Map : uint8_t { kMean, kWeighted, kLinear };
  int64_t l = 32;
  int64_t stride = 16;
  int64_t block = 64;
  int64_t n = 16;
  int64_t init = 1;
  int64_t local = 2;
  Map phi = Map::kLinear;
  bool position = true;

  template <class V>
  void VisitFields(V&& v) {
    v("l", l, Range<int64_t>{1, 1024}, "keys per compressed block, a multiple of stride");
    v("stride", stride, Range<int64_t>{1, 1024}, "keys from one compressed block to the next");
    v("block", block, Range<int64_t>{1, 1024}, "keys per selection block, a multiple of l");
    v("n", n, Range<int64_t>{1, kEverything}, "blocks selected per query, forced ones included");
    v("init", init, Range<int64_t>{0, 1 << 20}, "first blocks always selected");
    v("local", local, Range<int64_t>{1, 1 << 20},
      "last blocks always selected, the query's own included");
    v("phi", phi, Choices{"mean", "weighted", "linear"}, "map of a block of keys or values");
    v("position", position, Range<bool>{false, true},
      "add a learned embedding of the place in the block to keys");
  }
  absl::Status Check() const {
    if (l % stride == 0 && block % l == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "l=", l, " must be a multiple of stride=", stride, ", and block=", block, " one of l"));
  }
  bool Learns() const { return position || phi != Map::kMean; }
  // Complete compressed blocks of so many keys.
  int64_t Rows(int64_t keys) const { return keys < l ? 0 : (keys - l) / stride + 1; }

  // out [width] = the map of x [l, width] of a KV head.
  void Apply(const std::vector<float>& map, int64_t kv, const float* x, int64_t width, float* out,
             float* gemm) const {
    if (phi == Map::kLinear) {
      ScoreDot(x, 1, map.data() + kv * width * l * width, width, l * width, out, gemm);
      return;
    }
    std::fill(out, out + width, 0.0f);
    for (int64_t j = 0; j < l; ++j) {
      const float share = phi == Map::kMean ? 1.0f / static_cast<float>(l) : map[kv * l + j];
      for (int64_t i = 0; i < width; ++i) out[i] += share * x[j * width + i];
    }
  }
};

// What a checkpoint says of the model that it was trained with.
struct NsaDims {
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  int64_t width = 0;

  static NsaDims Of(const AttentionShape& s) {
    return {s.layers, s.heads, s.kv_heads, s.head_dim, s.value_dim, s.width};
  }
  void AddTo(WeightKeys& keys) const {
    for (const auto& [name, member] : kNames)
      keys.ints.push_back({absl::StrCat("sluice.nsa.", name), this->*member});
  }
  static absl::StatusOr<NsaDims> Read(const WeightSource& w) {
    NsaDims dims;
    for (const auto& [name, member] : kNames) {
      SLUICE_ASSIGN_OR_RETURN(dims.*member, w.Int(absl::StrCat("sluice.nsa.", name)));
      if (dims.*member < 0 || dims.*member > kMost)
        return absl::InvalidArgumentError(absl::StrCat("sluice.nsa.", name, " is ", dims.*member));
    }
    return dims;
  }
  absl::Status Check(const AttentionShape& s, bool with_width) const {
    const bool same = layers >= s.layers && heads == s.heads && kv_heads == s.kv_heads &&
                      head_dim == s.head_dim && value_dim == s.value_dim;
    if (same && (!with_width || width == s.width)) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "weights of ", layers, " layers, ", heads, "/", kv_heads, " heads of widths ", head_dim,
        " and ", value_dim, ", hidden width ", width, "; the model has ", s.layers, ", ", s.heads,
        "/", s.kv_heads, ", ", s.head_dim, " and ", s.value_dim, ", ", s.width));
  }

 private:
  static constexpr int64_t kMost = 1 << 20;
  static constexpr std::pair<const char*, int64_t NsaDims::*> kNames[] = {
      {"layers", &NsaDims::layers},       {"heads", &NsaDims::heads},
      {"kv_heads", &NsaDims::kv_heads},   {"head_dim", &NsaDims::head_dim},
      {"value_dim", &NsaDims::value_dim}, {"width", &NsaDims::width}};
};

// What selecting needs of a layer's weights; empty where the rule needs none.
struct NsaKeyWeights {
  std::vector<float> position;  // [kv_heads, l, d]
  std::vector<float> key_map;   // [kv_heads, l] or [kv_heads, d, l * d]
};
template <class Layer>
std::vector<LayerTensor<Layer>> NsaKeyTensors(const NsaRule& rule, const NsaDims& dims,
                                              int64_t layer) {
  const std::string prefix = absl::StrCat("nsa.", layer, ".");
  const auto l = static_cast<uint64_t>(rule.l);
  const auto kv = static_cast<uint64_t>(dims.kv_heads);
  const auto d = static_cast<uint64_t>(dims.head_dim);
  std::vector<LayerTensor<Layer>> all;
  if (rule.position) all.push_back({prefix + "position", {d, l, kv}, &Layer::position});
  if (rule.phi == NsaRule::Map::kWeighted)
    all.push_back({prefix + "key_map", {l, kv}, &Layer::key_map});
  if (rule.phi == NsaRule::Map::kLinear)
    all.push_back({prefix + "key_map", {l * d, d, kv}, &Layer::key_map});
  return all;
}

// Compressed keys in a router's state, and the blocks that queries select by them.
class NsaSelection {
 public:
  struct Layout {
    int64_t rows = 0;  // compressed, at most
    int64_t blocks = 0;
    State<float> keys;  // [kv_heads, rows, d]
    Scratch<float> window, queries, prob, score, gemm;
    Scratch<uint64_t> wanted;
    Scratch<std::byte> select;
  };
  explicit NsaSelection(const NsaRule& rule)
      : rule_(rule), stencil_(OverlapStencil::Make(rule.l, rule.stride, rule.block)) {}

  // For tiles of so many queries, at most 64.
  Layout AddTo(RouterPlan& plan, int64_t tile) const {
    const AttentionShape& s = plan.shape;
    Layout l = {.rows = rule_.Rows(s.max_kv), .blocks = CeilDiv(s.max_kv, rule_.block)};
    const int64_t wide = rule_.l * std::max(s.head_dim, s.value_dim);
    l.keys = plan.AddState<float>(s.kv_heads * l.rows * s.head_dim);
    l.window = plan.AddScratch<float>(wide);
    l.queries = plan.AddScratch<float>(tile * s.head_dim);
    l.prob = plan.AddScratch<float>(tile * l.rows);
    l.score = plan.AddScratch<float>(tile * l.blocks);
    l.gemm = AddGemmScratch(plan, std::max(wide, s.width));
    l.wanted = plan.AddScratch<uint64_t>(l.blocks);
    l.select = AddSelectScratch(plan, l.blocks);
    return l;
  }
  // Blocks that a tile's queries may select together.
  int64_t MaxBlocks(const Layout& l, int64_t tile) const {
    return std::min(l.blocks, tile * (std::min(rule_.n, l.blocks) + rule_.init + rule_.local));
  }

  // Calls body(kv, row, first key, scratch) in parallel for the compressed rows that new keys
  // complete.
  template <class Body>
  void ForEachNewRow(const RouterPlan& plan, const AttentionInputs& in, const RouterState& state,
                     const RunContext& ctx, Body&& body) const {
    const int64_t first = rule_.Rows(std::min(state.keys, in.kv_len()));
    const int64_t todo = rule_.Rows(in.kv_len()) - first;
    ctx.executor->ParallelFor(plan.shape.kv_heads * todo, 4,
                              [&](int64_t begin, int64_t end, int w) {
                                for (int64_t i = begin; i < end; ++i) {
                                  const int64_t row = first + i % todo;
                                  body(i / todo, row, row * rule_.stride, plan.Worker(ctx, w));
                                }
                              });
  }
  // Appends the compressed key of a row.
  void CompressKey(const Layout& layout, const AttentionInputs& in, const NsaKeyWeights& weights,
                   const RouterState& state, int64_t kv, int64_t row, WorkerScratch scratch) const {
    const int64_t d = in.k.dim;
    const int64_t start = row * rule_.stride;
    float* x = scratch[layout.window];
    KeysAsFloat(in.k_pre, kv, start, rule_.l, x);
    for (int64_t j = 0; j < rule_.l * d && rule_.position; ++j)
      x[j] += weights.position[kv * rule_.l * d + j];
    float* key = Key(layout, state, kv, row, d);
    rule_.Apply(weights.key_map, kv, x, d, key, scratch[layout.gemm]);
    RotateTo(key, d, start, in.rope_base);
  }

  // The entries of a tile's list, the union of its queries' blocks, each with the mask of those
  // that want it; returns how many.
  int64_t Select(const Layout& layout, const AttentionInputs& in, const RouterState& state,
                 int64_t kv, TileRows rows, const TileQueries& q, WorkerScratch scratch,
                 PlanEntry* entries, uint64_t* mask) const {
    ScoreBlocks(layout, in, state, kv, rows, q, scratch);
    const BlockBudget budget = {.k = rule_.n, .sink = rule_.init, .local = rule_.local};
    return SelectUnion(budget, rule_.block, q, scratch[layout.score], layout.blocks,
                       scratch[layout.wanted], scratch[layout.select], entries, mask);
  }

  static float* Key(const Layout& layout, const RouterState& state, int64_t kv, int64_t row,
                    int64_t d) {
    return RouterPlan::Get(state.layer, layout.keys) + (kv * layout.rows + row) * d;
  }

 private:
  // score [tile, blocks]: probabilities of the compressed blocks, carried over to selection blocks
  // and summed over the group's heads.
  void ScoreBlocks(const Layout& layout, const AttentionInputs& in, const RouterState& state,
                   int64_t kv, TileRows rows, const TileQueries& q, WorkerScratch scratch) const {
    const int64_t d = in.q.dim;
    const int64_t units = rule_.Rows(q.last + 1);
    const int64_t group = in.q.heads / in.k.heads;
    float* prob = scratch[layout.prob];
    std::fill_n(scratch[layout.score], rows.count * layout.blocks, 0.0f);
    for (int64_t head = kv * group; head < (kv + 1) * group && units > 0; ++head) {
      ScaledQueries(in.q, rows, head, in.scale, scratch[layout.queries]);
      ScoreDot(scratch[layout.queries], rows.count, Key(layout, state, kv, 0, d), units, d, prob,
               scratch[layout.gemm]);
      for (int64_t i = 0; i < rows.count; ++i) {
        const int64_t seen = rule_.Rows(q.first + i + 1);
        kernels::Softmax(prob + i * units, seen);
        stencil_.AddTo(prob + i * units, seen, (q.first + i) / rule_.block + 1,
                       scratch[layout.score] + i * layout.blocks);
      }
    }
  }

  NsaRule rule_;
  OverlapStencil stencil_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_NSA_SELECTION_H_
