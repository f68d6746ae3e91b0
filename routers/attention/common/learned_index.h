#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_LEARNED_INDEX_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_LEARNED_INDEX_H_
// The projections of a token indexer (DSA, HISA) that was trained beside a finished model.
//
//   PREP    queries and keys as they were before RoPE, the heads of a token side by side
//   SUM     index key of a token: layer norm of a linear map of its keys; index queries and the
//           weights of index heads: linear maps of its queries. The first `rope` dimensions of
//           index queries and keys are turned to the token's position.
//
// DeepSeek's indexer, trained with its model, reads the layer's input (keys, weights) and the
// latent of its queries; here both are what the attention itself was given, so that any host can
// serve it and a cache needs nothing of earlier inputs. RoPE is taken back: interleaved pairs, as
// GGUF files of Llama have them.
//
// O(heads * head_dim * index_heads * index_dim) a token. State: an index key a token.
#include <string>
#include <utility>
#include <vector>

#include "sluice/routers/attention/common/dims.h"
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
enum class IndexOf : uint8_t { kGiven, kLearned };
template <class V>
void VisitIndex(V&& v, IndexOf& index) {
  v("index", index, Choices{"given", "learned"},
    "the host's index projections, or attention's own queries and keys where it has none; or those "
    "of the weights");
}
inline absl::Status NoIndexWeights() {
  return absl::FailedPreconditionError(
      "index=learned needs trained weights and got none: give weights=FILE, or index=given");
}
inline absl::Status UnusedIndexWeights() {
  return absl::InvalidArgumentError("weights are given, and index=given reads none");
}

// Made without weights it adds nothing: plans keep their shape, and inputs stay as they are.
class LearnedIndex {
 public:
  struct Layout {
    AttentionShape shape;  // the plan's, with the indexer's heads and width
    State<float> keys;     // [max_kv, index_dim]
    Shared<float> queries, weights;
    Scratch<float> rows, gemm;
    Scratch<PairTurn> turns;
  };

  static WeightKeys Weights(IndexOf index, const AttentionShape& s) {
    WeightKeys keys;
    if (index == IndexOf::kGiven) return keys;
    LearnedIndex made;
    made.dims_ = {s.layers, s.heads, s.kv_heads, s.head_dim, 4, 16, 8};
    DeclareDims(kMethod, kDims, made.dims_, keys);
    for (int64_t layer = 0; layer < s.layers; ++layer) {
      DeclareTensors(made.Tensors(layer), keys);
    }
    return keys;
  }
  static absl::StatusOr<LearnedIndex> Read(const WeightSource& w) {
    LearnedIndex made;
    Dims& d = made.dims_;
    SLUICE_RETURN_IF_ERROR(ReadDims(w, kMethod, kDims, d));
    if (d.index_heads < 1 || d.index_dim < 1 || d.rope > d.index_dim || d.rope % 2 != 0)
      return absl::InvalidArgumentError(
          absl::StrCat("an indexer of ", d.index_heads, " heads of width ", d.index_dim, ", ",
                       d.rope, " of it turned; allowed: 1 or more, and an even part of the width"));
    for (int64_t layer = 0; layer < d.layers; ++layer) {
      Layer& to = made.layers_.emplace_back();
      SLUICE_RETURN_IF_ERROR(ReadTensors(w, made.Tensors(layer), to));
    }
    return made;
  }

  // Fails where the weights are another model's.
  absl::StatusOr<Layout> AddTo(RouterPlan& plan) const {
    const AttentionShape& s = plan.shape;
    const Dims& d = dims_;
    Layout l;
    l.shape = s;
    if (none()) return l;
    if (d.layers < s.layers || d.heads != s.heads || d.kv_heads != s.kv_heads ||
        d.head_dim != s.head_dim)
      return absl::InvalidArgumentError(
          absl::StrCat("an indexer of ", d.layers, " layers, ", d.heads, "/", d.kv_heads,
                       " heads of width ", d.head_dim, "; the model has ", s.layers, ", ", s.heads,
                       "/", s.kv_heads, " and ", s.head_dim));
    l.shape.index_heads = static_cast<int>(d.index_heads);
    l.shape.index_dim = static_cast<int>(d.index_dim);
    const int64_t wide = s.heads * s.head_dim;
    l.keys = plan.AddState<float>(s.max_kv * d.index_dim);
    l.queries = plan.AddShared<float>(s.max_queries * d.index_heads * d.index_dim);
    l.weights = plan.AddShared<float>(s.max_queries * d.index_heads);
    l.rows = plan.AddScratch<float>(kBatch * wide);
    l.turns = plan.AddScratch<PairTurn>(std::max<int64_t>(s.head_dim, d.rope) / 2);
    l.gemm = AddGemmScratch(plan, wide);
    return l;
  }

  // The inputs with the indexer's projections; new keys are appended to the state.
  absl::StatusOr<AttentionInputs> Project(const RouterPlan& plan, const Layout& l,
                                          const AttentionInputs& in, const RouterState& state,
                                          const RunContext& ctx) const {
    if (none()) return in;
    if (in.layer < 0 || in.layer >= std::ssize(layers_))
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", in.layer, " of ", layers_.size(), " with weights"));
    const Layer& layer = layers_[in.layer];
    float* keys = RouterPlan::Get(state.layer, l.keys);
    float* queries = plan.Get(ctx, l.queries);
    float* weights = plan.Get(ctx, l.weights);
    const int64_t known = std::min(state.keys, in.kv_len());
    ctx.executor->ParallelFor(
        CeilDiv(in.kv_len() - known, kBatch), 1, [&](int64_t begin, int64_t end, int w) {
          for (int64_t b = begin; b < end; ++b) {
            const int64_t at = known + b * kBatch;
            Keys(l, in, layer, at, std::min(kBatch, in.kv_len() - at), plan.Worker(ctx, w), keys);
          }
        });
    ctx.executor->ParallelFor(
        CeilDiv(in.q.rows, kBatch), 1, [&](int64_t begin, int64_t end, int w) {
          for (int64_t b = begin; b < end; ++b)
            Queries(l, in, layer, b * kBatch, std::min(kBatch, in.q.rows - b * kBatch),
                    plan.Worker(ctx, w), queries, weights);
        });

    const int64_t heads = dims_.index_heads;
    const int64_t dim = dims_.index_dim;
    AttentionInputs with = in;
    with.index.q = {queries, in.q.rows, heads, dim, heads * dim, dim};
    with.index.weight = {weights, in.q.rows, heads, heads};
    with.index.k = {keys, DType::kF32, in.kv_len(), 1, dim, dim, dim};
    return with;
  }

 private:
  static constexpr absl::string_view kMethod = "lightning_indexer";
  static constexpr int64_t kBatch = 32;  // tokens
  struct Dims {
    int64_t layers = 0;
    int64_t heads = 0;
    int64_t kv_heads = 0;
    int64_t head_dim = 0;
    int64_t index_heads = 0;
    int64_t index_dim = 0;
    int64_t rope = 0;
  };
  static constexpr DimName<Dims> kDims[] = {{"layers", &Dims::layers},
                                            {"heads", &Dims::heads},
                                            {"kv_heads", &Dims::kv_heads},
                                            {"head_dim", &Dims::head_dim},
                                            {"index_heads", &Dims::index_heads},
                                            {"index_dim", &Dims::index_dim},
                                            {"rope", &Dims::rope}};
  struct Layer {
    std::vector<float> query;                // [index_heads * index_dim, heads * head_dim]
    std::vector<float> key;                  // [index_dim, kv_heads * head_dim]
    std::vector<float> key_norm, key_shift;  // [index_dim]
    std::vector<float> weight;               // [index_heads, heads * head_dim]
  };
  bool none() const { return dims_.index_heads == 0; }
  std::vector<LayerTensor<Layer>> Tensors(int64_t layer) const {
    const auto u = [](int64_t n) { return static_cast<uint64_t>(n); };
    const std::string prefix = absl::StrCat("lightning_indexer.", layer, ".");
    const uint64_t q = u(dims_.heads * dims_.head_dim);
    const uint64_t k = u(dims_.kv_heads * dims_.head_dim);
    const uint64_t dim = u(dims_.index_dim);
    const uint64_t heads = u(dims_.index_heads);
    return {{prefix + "query", {q, heads * dim}, &Layer::query},
            {prefix + "key", {k, dim}, &Layer::key},
            {prefix + "key_norm", {dim}, &Layer::key_norm},
            {prefix + "key_shift", {dim}, &Layer::key_shift},
            {prefix + "weight", {q, heads}, &Layer::weight}};
  }

  // Turns the first `dim` dimensions of each head, `stride` apart, to a position.
  static void Turn(int64_t position, int64_t dim, float base, int64_t heads, int64_t stride,
                   PairTurn* turns, float* x) {
    for (int64_t i = 0; i < dim / 2; ++i) turns[i] = TurnOfPair(i, dim, position, base);
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < dim / 2; ++i) TurnPair(turns[i], x + h * stride + 2 * i);
    }
  }
  // Takes RoPE back from the heads of a token, side by side.
  void TurnBack(int64_t position, float base, int64_t heads, PairTurn* turns, float* x) const {
    Turn(-position, dims_.head_dim, base, heads, dims_.head_dim, turns, x);
  }
  void TurnIndex(int64_t position, float base, int64_t heads, PairTurn* turns, float* x) const {
    Turn(position, dims_.rope, base, heads, dims_.index_dim, turns, x);
  }

  // Index keys [at, at + n) of `keys`.
  void Keys(const Layout& l, const AttentionInputs& in, const Layer& layer, int64_t at, int64_t n,
            WorkerScratch scratch, float* keys) const {
    const int64_t d = dims_.head_dim;
    const int64_t width = dims_.kv_heads * d;
    const int64_t dim = dims_.index_dim;
    float* rows = scratch[l.rows];
    for (int64_t j = 0; j < n; ++j) {
      float* x = rows + j * width;
      for (int64_t kv = 0; kv < dims_.kv_heads; ++kv) KeysAsFloat(in.k, kv, at + j, 1, x + kv * d);
      TurnBack(at + j, in.rope_base, dims_.kv_heads, scratch[l.turns], x);
    }
    ScoreDot(rows, n, layer.key.data(), dim, width, keys + at * dim, scratch[l.gemm]);
    for (int64_t j = 0; j < n; ++j) {
      float* key = keys + (at + j) * dim;
      Normalise(layer, key);
      TurnIndex(at + j, in.rope_base, 1, scratch[l.turns], key);
    }
  }
  void Normalise(const Layer& layer, float* x) const {
    const int64_t dim = dims_.index_dim;
    float mean = 0;
    for (int64_t i = 0; i < dim; ++i) mean += x[i] / static_cast<float>(dim);
    float spread = 0;
    for (int64_t i = 0; i < dim; ++i) spread += (x[i] - mean) * (x[i] - mean);
    const float scale = 1 / std::sqrt(spread / static_cast<float>(dim) + 1e-5f);
    for (int64_t i = 0; i < dim; ++i)
      x[i] = (x[i] - mean) * scale * layer.key_norm[i] + layer.key_shift[i];
  }

  // Index queries and head weights of rows [at, at + n).
  void Queries(const Layout& l, const AttentionInputs& in, const Layer& layer, int64_t at,
               int64_t n, WorkerScratch scratch, float* queries, float* weights) const {
    const int64_t d = dims_.head_dim;
    const int64_t width = dims_.heads * d;
    const int64_t heads = dims_.index_heads;
    const int64_t each = heads * dims_.index_dim;
    float* rows = scratch[l.rows];
    for (int64_t j = 0; j < n; ++j) {
      float* x = rows + j * width;
      for (int64_t h = 0; h < dims_.heads; ++h) ScaledQueries(in.q, {at + j, 1}, h, 1, x + h * d);
      TurnBack(in.q_begin + at + j, in.rope_base, dims_.heads, scratch[l.turns], x);
    }
    ScoreDot(rows, n, layer.query.data(), each, width, queries + at * each, scratch[l.gemm]);
    ScoreDot(rows, n, layer.weight.data(), heads, width, weights + at * heads, scratch[l.gemm]);
    for (int64_t j = 0; j < n; ++j)
      TurnIndex(in.q_begin + at + j, in.rope_base, heads, scratch[l.turns],
                queries + (at + j) * each);
  }

  Dims dims_;
  std::vector<Layer> layers_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_LEARNED_INDEX_H_
