#ifndef SLUICE_ROUTERS_ATTENTION_ROUTING_TRANSFORMER_ROUTING_TRANSFORMER_H_
#define SLUICE_ROUTERS_ATTENTION_ROUTING_TRANSFORMER_ROUTING_TRANSFORMER_H_
// Routing Transformer: content-based clusters. A share of the heads sees a window; in the others
// every centroid takes the queries and the keys that are most like it, and attention runs inside
// the clusters. Learned: the centroids, of a model that was trained with them.
//
//   PREP    queries and keys, normalised
//   SCORE   their products with each centroid
//   SELECT  of each centroid the w best queries and the w best keys, w = tokens / clusters:
//           clusters of one size
//   ATTEND  inside each cluster, causal by position
//   MERGE   a query in several clusters gets the mean of its outputs, one in none zeros
//
// A call of several queries (prefill) looks at all of its tokens: which share a cluster depends on
// later ones, what is attended does not. A call of one query (decode, inferred): the query goes to
// its nearest centroid, a key stays with the centroid that was nearest when it came, and the query
// sees that centroid's keys, or as many as a balanced cluster has (`cap`).
//
// Inferred besides, each a switch: clusters are made of what RoPE has not turned (rope), a query in
// no cluster, or whose cluster has no key before it, gets zeros as upstream gives them, or its own
// key (orphans). centroids=online: a substitute without weights, to be named as such wherever it is
// measured: k-means over the queries and keys of each prefill call, begun from keys of the first;
// what it learned of keys that are dropped is not taken back.
//
// NaN is in no cluster; a query with one keeps its own key, so that it comes out as NaN. Ties go to
// the earliest token and the first centroid. Planning costs 2 tokens * clusters * width a head.
// State: the centroid of every key and routed head.
#include <string>
#include <utility>
#include <vector>

#include "sluice/api/config.h"
#include "sluice/routers/attention/common/dims.h"
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/runtime/kernels/top_k/top_k.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class RoutingTransformer {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "routing_transformer",
      .title = "Efficient Content-Based Sparse Attention with Routing Transformers",
      .arxiv = "2003.05997",
      .chunk_invariant = false,
      .reads_pre_rope = true,
      .full_budget = "clusters=1,members=2147483648,local_share=0",
      .small_budget = "clusters=8,window=16"};

  enum class Centroids : uint8_t { kLearned, kOnline };
  enum class Norm : uint8_t { kLayer, kL2, kNone };
  enum class Rope : uint8_t { kBefore, kAfter };
  enum class Orphans : uint8_t { kZero, kOwn };
  enum class Cap : uint8_t { kNone, kLatest, kBest };
  struct Config {
    int64_t clusters = 64;
    int64_t members = 0;
    double local_share = 0.5;
    int64_t window = 256;
    Norm norm = Norm::kLayer;
    Rope rope = Rope::kBefore;
    Orphans orphans = Orphans::kZero;
    Cap cap = Cap::kNone;
    Centroids centroids = Centroids::kLearned;
    int64_t rounds = 3;
    double decay = 0.5;
    template <class V>
    void VisitFields(V&& v) {
      v("clusters", clusters, Range<int64_t>{1, 4096},
        "centroids a head; of weights: as many as they have");
      v("members", members, Range<int64_t>{0, kEverything},
        "queries and keys of a cluster, at most; 0: tokens / clusters");
      v("local_share", local_share, Range<double>{0, 1},
        "share of the heads, the first ones, that see a window instead");
      v("window", window, Range<int64_t>{1, kEverything}, "last keys that local heads see");
      v("norm", norm, Choices{"layer", "l2", "none"},
        "of queries and keys before they are compared: layer norm without weights, or length 1");
      v("rope", rope, Choices{"before", "after"}, "clusters of queries and keys as they are then");
      v("orphans", orphans, Choices{"zero", "own"},
        "what a query gets whose clusters hold no key before it");
      v("cap", cap, Choices{"none", "latest", "best"},
        "decode: which keys of a cluster are seen once it has more than a balanced one");
      v("centroids", centroids, Choices{"learned", "online"},
        "of the weights, or k-means over what is seen");
      v("rounds", rounds, Range<int64_t>{1, 100}, "online: updates a prefill call");
      v("decay", decay, Range<double>{0, 1},
        "online: what centroids keep of themselves in an update (published, in training: 0.999)");
    }
    bool Learns() const { return centroids == Centroids::kLearned; }
    int64_t LocalHeads(int64_t heads) const {
      return static_cast<int64_t>(local_share * static_cast<double>(heads));
    }
    // Tokens of a cluster, of so many.
    int64_t Members(int64_t tokens) const {
      return std::min(tokens, members > 0 ? members : std::max<int64_t>(1, tokens / clusters));
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    int64_t local = 0;         // heads
    int64_t entries_head = 0;  // slots of a head's entries
    State<uint16_t> nearest;   // [routed heads, max_kv]
    State<float> likeness;     // [routed heads, max_kv], with cap=best
    State<float> centroids;    // [routed heads, clusters, d], online
    State<int64_t> begun;      // online: whether there are centroids yet
    Scratch<float> key_scores, query_scores, batch, means, gemm;
    Scratch<uint32_t> ids, picked;
    Scratch<uint8_t> routed;
    Scratch<std::byte> top;
  };

  static WeightKeys Weights(const Config& c, const AttentionShape& s) {
    WeightKeys keys;
    if (!c.Learns()) return keys;
    const Dims dims = {s.layers, s.heads - c.LocalHeads(s.heads), c.clusters, s.head_dim};
    DeclareDims(kTraits.name, kDims, dims, keys);
    const std::vector<uint64_t> shape = dims.Shape();
    for (int64_t layer = 0; layer < s.layers; ++layer)
      keys.tensors.push_back({TensorName(layer), {shape.begin(), shape.end()}});
    return keys;
  }

  static absl::StatusOr<RoutingTransformer> Create(const Config& c) {
    if (!c.Learns()) return RoutingTransformer(c);
    return absl::FailedPreconditionError(
        "needs trained centroids and got none: give weights=FILE, or centroids=online for a "
        "substitute");
  }
  static absl::StatusOr<RoutingTransformer> Create(const Config& c, const WeightSource& w) {
    RoutingTransformer r(c);
    if (!c.Learns()) return r;
    SLUICE_RETURN_IF_ERROR(ReadDims(w, kTraits.name, kDims, r.dims_));
    if (r.dims_.clusters != c.clusters)
      return absl::InvalidArgumentError(
          absl::StrCat("clusters=", c.clusters, ", and the weights have ", r.dims_.clusters));
    for (int64_t layer = 0; layer < r.dims_.layers; ++layer) {
      SLUICE_ASSIGN_OR_RETURN(std::vector<float> of_layer,
                              w.ReadF32(TensorName(layer), r.dims_.Shape()));
      r.layers_.push_back(std::move(of_layer));
    }
    return r;
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    plan.local = config_.LocalHeads(s.heads);
    const int64_t routed = s.heads - plan.local;
    SLUICE_RETURN_IF_ERROR(CheckDims(s, routed));
    const int64_t clusters = config_.clusters;
    const int64_t most = std::max(s.max_kv, s.max_queries);
    plan.nearest = plan.AddState<uint16_t>(routed * s.max_kv);
    if (config_.cap == Cap::kBest) plan.likeness = plan.AddState<float>(routed * s.max_kv);
    if (!config_.Learns()) {
      plan.centroids = plan.AddState<float>(routed * clusters * s.head_dim);
      plan.begun = plan.AddState<int64_t>(std::max<int64_t>(1, routed));
    }
    plan.key_scores = plan.AddScratch<float>(clusters * s.max_kv);
    plan.query_scores = plan.AddScratch<float>(clusters * s.max_queries);
    plan.batch = plan.AddScratch<float>(kKeyBatch * s.head_dim);
    plan.means = plan.AddScratch<float>(clusters * s.head_dim);
    plan.gemm = AddGemmScratch(plan, s.head_dim);
    plan.ids = plan.AddScratch<uint32_t>(most);
    plan.picked = plan.AddScratch<uint32_t>(most);
    plan.routed = plan.AddScratch<uint8_t>(s.max_queries);
    plan.top = plan.AddScratch<std::byte>(kernels::TopKScratchBytes(most));

    // A head lists the keys of its clusters once, and after them those of queries without any.
    const int64_t queries = config_.Members(s.max_queries);
    const int64_t tiles = clusters * CeilDiv(queries, kTile) + MaxTiles(s, kTile);
    plan.entries_head = std::max(clusters * config_.Members(s.max_kv), s.max_kv) + s.max_queries;
    plan.layout.max_tile = kTile;
    plan.layout.AddBranch({.rows = s.heads * tiles,
                           .entry_slots = CeilDiv(plan.entries_head, tiles),
                           .order_slots = s.heads * (clusters * queries + s.max_queries),
                           .mask = 1});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    if (config_.Learns() && (in.layer < 0 || in.layer >= std::ssize(layers_)))
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", in.layer, " of ", layers_.size(), " with weights"));
    Begin(plan.shape, in, out, Merge::kMean);
    const int64_t queries = in.q.rows;
    const int64_t a_cluster = queries == 1 ? 1 : CeilDiv(config_.Members(queries), kTile);
    const int64_t cluster_tiles = queries == 1 ? 1 : config_.clusters * a_cluster;
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch,
                            out.AddBranch({.scope = ListScope::kQueryHead,
                                           .tile = kTile,
                                           .num_tiles = cluster_tiles + CeilDiv(queries, kTile),
                                           .window = config_.window,
                                           .mask = true}));
    ctx.executor->ParallelFor(in.q.heads, 1, [&](int64_t begin, int64_t end, int w) {
      for (int64_t head = begin; head < end; ++head) {
        if (head < plan.local) {
          LocalHead(plan, head, branch);
          continue;
        }
        Lists lists(plan, head, branch);
        RouteHead(plan, in, state, head, plan.Worker(ctx, w), lists);
        lists.Finish();
      }
    });
    return absl::OkStatus();
  }

 private:
  static constexpr uint16_t kNoCluster = 0xffff;
  struct Dims {
    int64_t layers = 0;
    int64_t heads = 0;  // routed
    int64_t clusters = 0;
    int64_t dim = 0;
    std::vector<uint64_t> Shape() const {  // fastest dimension first
      return {static_cast<uint64_t>(dim), static_cast<uint64_t>(clusters),
              static_cast<uint64_t>(heads)};
    }
  };
  static constexpr DimName<Dims> kDims[] = {{"layers", &Dims::layers},
                                            {"heads", &Dims::heads},
                                            {"clusters", &Dims::clusters},
                                            {"dim", &Dims::dim}};
  static std::string TensorName(int64_t layer) {
    return absl::StrCat("routing_transformer.", layer, ".centroids");
  }

  // Fills the tiles and entries of one head: keys are listed, then queries that see them.
  class Lists {
   public:
    Lists(const Plan& plan, int64_t head, const BranchWriter& branch)
        : branch_(branch),
          head_(head),
          at_(head * plan.entries_head),
          tile_begin_(branch_.tile_begin(head)),
          order_(branch_.q_order(head)) {
      tile_begin_[0] = 0;
    }

    // Begins the list of a cluster. Keys come by rising number.
    void BeginKeys() {
      at_ += entries_;
      entries_ = 0;
    }
    void AddKey(uint32_t key) {
      PlanEntry* entries = branch_.entries(0) + at_;
      if (entries_ > 0 && entries[entries_ - 1].start + entries[entries_ - 1].len == key) {
        ++entries[entries_ - 1].len;
        return;
      }
      branch_.mask(0)[at_ + entries_] = ~uint64_t{0};
      entries[entries_++] = ExactEntry(key, 1);
    }
    // A query, by rising number, of the list that was begun last; returns whether it sees a key.
    bool AddQuery(int64_t query) {
      const PlanEntry* entries = branch_.entries(0) + at_;
      if (entries_ == 0 || entries[0].start > branch_.position(query)) return false;
      if (slots_ - tile_begin_[tiles_] == kTile) EndTile();
      order_[slots_++] = static_cast<int32_t>(query);
      return true;
    }
    void EndQueries() {
      if (slots_ > tile_begin_[tiles_]) EndTile();
    }
    // A query that sees its own key alone.
    void AddOrphan(int64_t query) {
      const int64_t in_tile = slots_ - tile_begin_[tiles_];
      branch_.mask(0)[at_ + entries_] = uint64_t{1} << in_tile;
      branch_.entries(0)[at_ + entries_++] = ExactEntry(branch_.position(query), 1);
      order_[slots_++] = static_cast<int32_t>(query);
      if (in_tile + 1 == kTile) {
        EndTile();
        BeginKeys();
      }
    }
    void Finish() {
      EndQueries();
      for (; tiles_ < branch_.num_tiles(); ++tiles_) tile_begin_[tiles_ + 1] = slots_;
    }

   private:
    // The tile's queries see of the list what begins up to the last of them.
    void EndTile() {
      const PlanEntry* entries = branch_.entries(0) + at_;
      const int64_t last = branch_.position(order_[slots_ - 1]);
      int64_t n = entries_;
      while (entries[n - 1].start > last) --n;
      branch_.set_row(branch_.row_of(head_, tiles_), at_, n);
      tile_begin_[++tiles_] = slots_;
    }

    BranchWriter branch_;
    int64_t head_;
    int64_t at_;           // where the list that was begun last lies
    int64_t entries_ = 0;  // of it
    int64_t tiles_ = 0;
    int64_t slots_ = 0;
    int64_t* tile_begin_;
    int32_t* order_;
  };

  explicit RoutingTransformer(const Config& c) : config_(c) {}

  absl::Status CheckDims(const AttentionShape& s, int64_t routed) const {
    const Dims& d = dims_;
    if (!config_.Learns() || (d.layers >= s.layers && d.heads == routed && d.dim == s.head_dim))
      return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("centroids of ", d.layers, " layers, ", d.heads, " routed heads of width ",
                     d.dim, "; the model has ", s.layers, ", ", routed, " and ", s.head_dim));
  }

  void LocalHead(const Plan& plan, int64_t head, BranchWriter branch) const {
    int64_t* tile_begin = branch.tile_begin(head);
    const int64_t queries = branch.q_count();
    for (int64_t i = 0; i < queries; ++i) branch.q_order(head)[i] = static_cast<int32_t>(i);
    for (int64_t t = 0; t <= branch.num_tiles(); ++t) tile_begin[t] = std::min(queries, t * kTile);
    for (int64_t t = 0; t < CeilDiv(queries, kTile); ++t) {
      const TileQueries q = branch.Queries(t);
      const int64_t start = std::max<int64_t>(0, q.first - config_.window + 1);
      const int64_t at = head * plan.entries_head + t;
      branch.entries(0)[at] =
          ExactEntry(start, q.last + 1 - start, MaskClass::kLowerBound, /*forced=*/true);
      branch.mask(0)[at] = ~uint64_t{0};
      branch.set_row(branch.row_of(head, t), at, 1);
    }
  }

  // The queries or keys that clusters are made of, of one routed head.
  struct Tokens {
    KvView rows;
    int64_t head = 0;
  };
  Tokens Queries(const AttentionInputs& in, int64_t head) const {
    const HeadsView<const float>& q = config_.rope == Rope::kBefore ? in.q_pre : in.q;
    return {{q.data, DType::kF32, q.rows, q.heads, q.dim, q.row_stride, q.head_stride}, head};
  }
  Tokens Keys(const Plan& plan, const AttentionInputs& in, int64_t head) const {
    return {config_.rope == Rope::kBefore ? in.k_pre : in.k, head / GroupSize(plan.shape)};
  }

  void Normalise(float* x, int64_t d) const {
    if (config_.norm == Norm::kNone) return;
    float mean = 0;
    if (config_.norm == Norm::kLayer) {
      for (int64_t i = 0; i < d; ++i) mean += x[i];
      mean /= static_cast<float>(d);
    }
    float squares = 0;
    for (int64_t i = 0; i < d; ++i) {
      x[i] -= mean;
      squares += x[i] * x[i];
    }
    const float spread = config_.norm == Norm::kLayer
                             ? std::sqrt(squares / static_cast<float>(d) + 1e-5f)
                             : std::sqrt(squares);
    for (int64_t i = 0; i < d && spread != 0; ++i) x[i] /= spread;
  }

  // out [clusters, end - begin] = the centroids' scores of tokens [begin, end).
  void Score(const Plan& plan, const Tokens& tokens, int64_t begin, int64_t end,
             const float* centroids, float* out, WorkerScratch scratch) const {
    const int64_t d = tokens.rows.dim;
    float* x = scratch[plan.batch];
    for (int64_t at = begin; at < end; at += kKeyBatch) {
      const int64_t n = std::min(kKeyBatch, end - at);
      KeysAsFloat(tokens.rows, tokens.head, at, n, x);
      for (int64_t j = 0; j < n; ++j) Normalise(x + j * d, d);
      kernels::GemmNT(centroids, d, x, d, config_.clusters, n, d, out + (at - begin), end - begin,
                      scratch[plan.gemm]);
    }
  }
  // ids = the tokens that a centroid takes, ascending, of scores [clusters, n]; returns how many.
  int64_t Take(const Plan& plan, const float* scores, int64_t n, int64_t cluster,
               WorkerScratch scratch) const {
    return kernels::TopK(scores + cluster * n, n, config_.Members(n), scratch[plan.ids],
                         scratch[plan.top])
        .count;
  }
  // The first centroid that likes a column of scores [clusters, n] best; none of NaN alone.
  uint16_t Nearest(const float* scores, int64_t n, int64_t column, float* likeness) const {
    uint16_t best = kNoCluster;
    *likeness = -HUGE_VALF;
    for (int64_t c = 0; c < config_.clusters; ++c) {
      const float score = scores[c * n + column];
      if (!(score > *likeness)) continue;
      *likeness = score;
      best = static_cast<uint16_t>(c);
    }
    return best;
  }

  // Of a routed head.
  const float* Centroids(const Plan& plan, const AttentionInputs& in, const RouterState& state,
                         int64_t head) const {
    if (!config_.Learns()) return OnlineCentroids(plan, state, head);
    return layers_[in.layer].data() + (head - plan.local) * config_.clusters * dims_.dim;
  }
  float* OnlineCentroids(const Plan& plan, const RouterState& state, int64_t head) const {
    return RouterPlan::Get(state.layer, plan.centroids) +
           (head - plan.local) * config_.clusters * plan.shape.head_dim;
  }
  int64_t StateOf(const Plan& plan, int64_t head) const {
    return (head - plan.local) * plan.shape.max_kv;
  }

  void RouteHead(const Plan& plan, const AttentionInputs& in, const RouterState& state,
                 int64_t head, WorkerScratch scratch, Lists& lists) const {
    if (!config_.Learns()) LearnOnline(plan, in, state, head, scratch);
    const float* centroids = Centroids(plan, in, state, head);
    Append(plan, in, state, head, centroids, scratch);
    std::fill_n(scratch[plan.routed], in.q.rows, uint8_t{0});
    const Tokens queries = Queries(in, head);
    float* scores = scratch[plan.query_scores];
    Score(plan, queries, 0, in.q.rows, centroids, scores, scratch);
    if (in.q.rows == 1) {
      DecodeHead(plan, in, state, head, scratch, lists);
    } else {
      PrefillHead(plan, in, head, centroids, scratch, lists);
    }

    lists.EndQueries();
    lists.BeginKeys();
    for (int64_t i = 0; i < in.q.rows; ++i) {
      float likeness = 0;
      const bool lost = Nearest(scores, in.q.rows, i, &likeness) == kNoCluster;
      if (scratch[plan.routed][i] == 0 && (lost || config_.orphans == Orphans::kOwn))
        lists.AddOrphan(i);
    }
  }

  // Says of new keys which centroid is theirs.
  void Append(const Plan& plan, const AttentionInputs& in, const RouterState& state, int64_t head,
              const float* centroids, WorkerScratch scratch) const {
    const Tokens keys = Keys(plan, in, head);
    uint16_t* nearest = RouterPlan::Get(state.layer, plan.nearest) + StateOf(plan, head);
    float* scores = scratch[plan.key_scores];
    for (int64_t at = std::min(state.keys, in.kv_len()); at < in.kv_len(); at += kKeyBatch) {
      const int64_t n = std::min(kKeyBatch, in.kv_len() - at);
      Score(plan, keys, at, at + n, centroids, scores, scratch);
      for (int64_t j = 0; j < n; ++j) {
        float likeness = 0;
        nearest[at + j] = Nearest(scores, n, j, &likeness);
        if (config_.cap == Cap::kBest)
          RouterPlan::Get(state.layer, plan.likeness)[StateOf(plan, head) + at + j] = likeness;
      }
    }
  }

  // The keys and queries of every cluster.
  void PrefillHead(const Plan& plan, const AttentionInputs& in, int64_t head,
                   const float* centroids, WorkerScratch scratch, Lists& lists) const {
    const int64_t keys = in.kv_len();
    float* scores = scratch[plan.key_scores];
    Score(plan, Keys(plan, in, head), 0, keys, centroids, scores, scratch);
    const uint32_t* ids = scratch[plan.ids];
    for (int64_t c = 0; c < config_.clusters; ++c) {
      lists.BeginKeys();
      const int64_t some = Take(plan, scores, keys, c, scratch);
      for (int64_t j = 0; j < some; ++j) lists.AddKey(ids[j]);
      const int64_t asking = Take(plan, scratch[plan.query_scores], in.q.rows, c, scratch);
      for (int64_t j = 0; j < asking; ++j) {
        if (lists.AddQuery(ids[j])) scratch[plan.routed][ids[j]] = 1;
      }
      lists.EndQueries();
    }
  }

  // The keys of the query's nearest centroid.
  void DecodeHead(const Plan& plan, const AttentionInputs& in, const RouterState& state,
                  int64_t head, WorkerScratch scratch, Lists& lists) const {
    float likeness = 0;
    const uint16_t own = Nearest(scratch[plan.query_scores], 1, 0, &likeness);
    if (own == kNoCluster) return;
    const uint16_t* nearest = RouterPlan::Get(state.layer, plan.nearest) + StateOf(plan, head);
    uint32_t* ids = scratch[plan.ids];
    int64_t n = 0;
    for (int64_t s = 0; s < in.kv_len(); ++s) {
      if (nearest[s] == own) ids[n++] = static_cast<uint32_t>(s);
    }
    const int64_t most = config_.Members(in.kv_len());
    if (config_.cap == Cap::kLatest && n > most) {
      ids += n - most;
      n = most;
    }
    if (config_.cap == Cap::kBest && n > most) {
      const float* of_keys = RouterPlan::Get(state.layer, plan.likeness) + StateOf(plan, head);
      float* scores = scratch[plan.key_scores];
      for (int64_t j = 0; j < n; ++j) scores[j] = of_keys[ids[j]];
      uint32_t* picked = scratch[plan.picked];
      n = kernels::TopK(scores, n, most, picked, scratch[plan.top]).count;
      for (int64_t j = 0; j < n; ++j) ids[j] = ids[picked[j]];
    }
    lists.BeginKeys();
    for (int64_t j = 0; j < n; ++j) lists.AddKey(ids[j]);
    scratch[plan.routed][0] = lists.AddQuery(0) ? 1 : 0;
  }

  // k-means over the queries and keys of a prefill call, begun from keys that lie evenly.
  void LearnOnline(const Plan& plan, const AttentionInputs& in, const RouterState& state,
                   int64_t head, WorkerScratch scratch) const {
    const int64_t d = plan.shape.head_dim;
    const Tokens keys = Keys(plan, in, head);
    float* centroids = OnlineCentroids(plan, state, head);
    int64_t& begun = RouterPlan::Get(state.layer, plan.begun)[head - plan.local];
    for (int64_t c = 0; c < config_.clusters && begun == 0; ++c) {
      KeysAsFloat(keys.rows, keys.head, (2 * c + 1) * in.kv_len() / (2 * config_.clusters), 1,
                  centroids + c * d);
      Normalise(centroids + c * d, d);
    }
    if (begun != 0 && in.q.rows == 1) return;
    begun = 1;
    for (int64_t round = 0; round < config_.rounds; ++round) {
      float* means = scratch[plan.means];
      std::fill_n(means, config_.clusters * d, 0.0f);
      AddMeans(plan, keys, in.kv_len(), centroids, scratch[plan.key_scores], scratch);
      AddMeans(plan, Queries(in, head), in.q.rows, centroids, scratch[plan.query_scores], scratch);
      const auto keep = static_cast<float>(config_.decay);
      for (int64_t i = 0; i < config_.clusters * d; ++i)
        centroids[i] = keep * centroids[i] + (1 - keep) * means[i] / 2;
    }
  }
  // means [clusters, d] += the mean of what each centroid takes of n tokens.
  void AddMeans(const Plan& plan, const Tokens& tokens, int64_t n, const float* centroids,
                float* scores, WorkerScratch scratch) const {
    const int64_t d = plan.shape.head_dim;
    Score(plan, tokens, 0, n, centroids, scores, scratch);
    float* x = scratch[plan.batch];
    for (int64_t c = 0; c < config_.clusters; ++c) {
      const int64_t some = Take(plan, scores, n, c, scratch);
      float* mean = scratch[plan.means] + c * d;
      for (int64_t j = 0; j < some; ++j) {
        KeysAsFloat(tokens.rows, tokens.head, scratch[plan.ids][j], 1, x);
        Normalise(x, d);
        for (int64_t i = 0; i < d; ++i) mean[i] += x[i] / static_cast<float>(some);
      }
    }
  }

  Config config_;
  Dims dims_;
  std::vector<std::vector<float>> layers_;  // [routed heads, clusters, d]; empty online
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_ROUTING_TRANSFORMER_ROUTING_TRANSFORMER_H_
