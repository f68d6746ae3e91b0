#ifndef SLUICE_ROUTERS_ATTENTION_SPATTEN_SPATTEN_H_
#define SLUICE_ROUTERS_ATTENTION_SPATTEN_SPATTEN_H_
// SpAtten's cascades: tokens that earlier layers paid little attention to, and heads that said
// little, are gone in the layers behind.
//
//   SUM     importance of a token: its probability, over heads and queries; of a head: |o|. Both
//           grow over layers and calls, from what the executor measured (Observe)
//   SELECT  behind each layer the best keep * N tokens of those alive, and the best heads
//   ATTEND  what is alive, causal, and every query's own key; a pruned head attends nothing
//   REUSE   the next call begins with what the last layer left, and all that is new
//
// A call to layer 0, or any call that does not follow the layer before it, begins a pass. Within a
// pass both alive sets are nested. Heads, unlike tokens, are all there again in the next pass: the
// published head schedule starts each step with all of them. Truncation forgets the tokens behind
// the cut; what their queries gave to others, and to heads, stays. O(keys) a layer and tile beside
// the executor's second QK pass, which costs as much as the first.
//
// Left out, because a plan cannot say it: local value pruning and progressive quantisation of keys.
// Dropping a token's projections and FFN is the host's affair; the lists say which are gone.
//
// Switches where the notes leave a choice:
//   schedule  linear: from keep_first behind layer from_layer to keep_last behind the last one;
//             gpt2: the workload published for GPT-2 small, by layer 0.9, 0.7, 0.2, 0.2, 0.2, then
//             0.1 (its source names layers 5 and 6 for the last step; here it is 5)
//   carry     last: a dropped token stays dropped in later calls; all: a call begins with all
#include "sluice/api/config.h"
#include "sluice/routers/attention/common/plan.h"
#include "sluice/runtime/kernels/top_k/top_k.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Spatten {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "spatten",
      .title =
          "SpAtten: Efficient Sparse Attention Architecture with Cascade Token and Head "
          "Pruning",
      .arxiv = "2012.09852",
      .chunk_invariant = false,  // a call's lists come of the calls before it
      .feedback = kKeyMass | kHeadNorm,
      .full_budget = "keep_first=1,keep_last=1",
      .small_budget = "keep_first=0.25,keep_last=0.25"};

  enum class Schedule : uint8_t { kLinear, kGpt2 };
  enum class Carry : uint8_t { kLast, kAll };
  struct Config {
    Schedule schedule = Schedule::kLinear;
    double keep_first = 0.9;
    double keep_last = 0.1;
    double heads_first = 1;
    double heads_last = 1;
    int64_t from_layer = 0;
    Carry carry = Carry::kLast;
    template <class V>
    void VisitFields(V&& v) {
      v("schedule", schedule, Choices{"linear", "gpt2"},
        "which share of the tokens a layer leaves");
      v("keep_first", keep_first, Range<double>{0, 1}, "tokens left behind layer from_layer");
      v("keep_last", keep_last, Range<double>{0, 1}, "tokens left behind the last layer");
      v("heads_first", heads_first, Range<double>{0, 1}, "heads left behind layer from_layer");
      v("heads_last", heads_last, Range<double>{0, 1}, "heads left behind the last layer");
      v("from_layer", from_layer, Range<int64_t>{0, 1 << 16}, "layers before it leave everything");
      v("carry", carry, Choices{"last", "all"}, "tokens that a call begins with, beside new ones");
    }
  };
  // Where a sequence stands. All zero: nothing was attended.
  struct Cascade {
    int64_t pass = 0;     // passes begun
    int64_t next = 0;     // the least layer that goes on with it
    int64_t q_begin = 0;  // of the pass
    int64_t keys = 0;     // with an importance
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    State<int64_t> seen;     // the pass in which this layer ran last
    State<Cascade> cascade;  // this and the rest is of all layers
    State<double> importance, head_importance;
    State<uint8_t> alive, head_alive;
    State<float> scores;
    State<uint32_t> best;
    State<std::byte> top;
  };

  static absl::StatusOr<Spatten> Create(const Config& c) {
    const Config plain;
    const bool linear = c.keep_first != plain.keep_first || c.keep_last != plain.keep_last;
    if (c.schedule != Schedule::kLinear && linear) {
      return absl::InvalidArgumentError(
          "keep_first and keep_last are of schedule=linear; gpt2 has shares of its own");
    }
    return Spatten(c);
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const;
  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const;
  absl::Status Observe(const Plan& plan, const AttentionFeedback& f, RouterState& state) const;
  void Truncate(const Plan& plan, RouterState& state, int64_t keys) const;

  // What each token has been given so far: [max_kv].
  static const double* Importance(const Plan& plan, const RouterState& state) {
    return RouterPlan::Get(state.sequence, plan.importance);
  }

 private:
  explicit Spatten(const Config& c) : config_(c) {}

  bool PrunesHeads() const { return config_.heads_first < 1 || config_.heads_last < 1; }
  ListScope scope() const { return PrunesHeads() ? ListScope::kQueryHead : ListScope::kAllHeads; }
  double KeepTokens(const AttentionShape& s, int64_t layer) const;
  double Between(const AttentionShape& s, int64_t layer, double first, double last) const;
  void Enter(const Plan& plan, const AttentionInputs& in, RouterState& state) const;
  static void Keep(const Plan& plan, RouterState& state, double share, const double* importance,
                   int64_t n, uint8_t* alive);

  Config config_;
};

inline absl::StatusOr<Spatten::Plan> Spatten::MakePlan(const AttentionShape& s) const {
  Plan plan(s);
  plan.seen = plan.AddState<int64_t>(1);
  plan.cascade = plan.AddSequence<Cascade>(1);
  plan.importance = plan.AddSequence<double>(s.max_kv);
  plan.head_importance = plan.AddSequence<double>(s.heads);
  plan.alive = plan.AddSequence<uint8_t>(s.max_kv);
  plan.head_alive = plan.AddSequence<uint8_t>(s.heads);
  const int64_t most = std::max<int64_t>(s.max_kv, s.heads);
  plan.scores = plan.AddSequence<float>(most);
  plan.best = plan.AddSequence<uint32_t>(most);
  plan.top = plan.AddSequence<std::byte>(kernels::TopKScratchBytes(most));

  // Heads share one list a tile: all rows of a tile together have room for all keys.
  const int64_t lists = NumLists(scope(), s.heads, s.kv_heads);
  plan.layout.max_tile = kTile;
  plan.layout.AddBranch(
      {.rows = lists * MaxTiles(s, kTile), .token_slots = CeilDiv(s.max_kv, lists), .mask = 1});
  return plan;
}

inline absl::Status Spatten::Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                                 const RunContext& ctx, PlanBuilder& out) const {
  if (in.layer < 0) {
    return absl::FailedPreconditionError(
        "spatten prunes from layer to layer: the host must say which layer asks");
  }
  Enter(plan, in, state);

  Begin(plan.shape, in, out);
  SLUICE_ASSIGN_OR_RETURN(
      BranchWriter branch,
      out.AddBranch(
          {.encoding = Encoding::kTokens, .scope = scope(), .tile = kTile, .mask = true}));
  const uint8_t* alive = RouterPlan::Get(state.sequence, plan.alive);
  const uint8_t* head_alive = RouterPlan::Get(state.sequence, plan.head_alive);
  ctx.executor->ParallelFor(branch.num_tiles(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const TileQueries q = branch.Queries(tile);
      const int64_t at = tile * branch.num_lists() * branch.slots();
      int64_t n = 0;
      for (int64_t key = 0; key <= q.last; ++key) {
        if (alive[key] == 0 && key < q.first) continue;
        branch.tokens(0)[at + n] = static_cast<uint32_t>(key);
        branch.mask(0)[at + n] = alive[key] != 0 ? ~uint64_t{0} : uint64_t{1} << (key - q.first);
        ++n;
      }
      for (int64_t list = 0; list < branch.num_lists(); ++list) {
        const bool attends = !PrunesHeads() || head_alive[list] != 0;
        branch.set_row(branch.row_of(list, tile), at, attends ? n : 0);
      }
    }
  });
  return absl::OkStatus();
}

// Goes on with the pass, or begins one: all that is new is alive, and so are all heads.
inline void Spatten::Enter(const Plan& plan, const AttentionInputs& in, RouterState& state) const {
  Cascade& c = *RouterPlan::Get(state.sequence, plan.cascade);
  double* importance = RouterPlan::Get(state.sequence, plan.importance);
  uint8_t* alive = RouterPlan::Get(state.sequence, plan.alive);
  uint8_t* head_alive = RouterPlan::Get(state.sequence, plan.head_alive);

  const bool follows = in.layer >= c.next && in.q_begin == c.q_begin && in.kv_len() == c.keys;
  if (!follows) {
    const int64_t known = std::min(c.keys, in.q_begin);
    if (config_.carry == Carry::kAll) std::fill(alive, alive + known, uint8_t{1});
    std::fill(alive + known, alive + in.kv_len(), uint8_t{1});
    std::fill(importance + known, importance + in.kv_len(), 0.0);
    std::fill(head_alive, head_alive + plan.shape.heads, uint8_t{1});
    ++c.pass;
    c.q_begin = in.q_begin;
    c.keys = in.kv_len();
  }
  c.next = in.layer + 1;
  *RouterPlan::Get(state.layer, plan.seen) = c.pass;
}

// SUM what was attended, SELECT what the next layer sees.
inline absl::Status Spatten::Observe(const Plan& plan, const AttentionFeedback& f,
                                     RouterState& state) const {
  double* importance = RouterPlan::Get(state.sequence, plan.importance);
  double* head_importance = RouterPlan::Get(state.sequence, plan.head_importance);
  for (int64_t head = 0; head < f.heads; ++head) {
    const float* mass = f.key_mass + head * f.kv_len;
    for (int64_t key = 0; key < f.kv_len; ++key) importance[key] += static_cast<double>(mass[key]);
    head_importance[head] += static_cast<double>(f.head_norm[head]);
  }

  const AttentionShape& s = plan.shape;
  const double heads = Between(s, f.layer, config_.heads_first, config_.heads_last);
  Keep(plan, state, KeepTokens(s, f.layer), importance, f.kv_len,
       RouterPlan::Get(state.sequence, plan.alive));
  Keep(plan, state, heads, head_importance, s.heads,
       RouterPlan::Get(state.sequence, plan.head_alive));
  return absl::OkStatus();
}

inline void Spatten::Truncate(const Plan& plan, RouterState& state, int64_t keys) const {
  Cascade& c = *RouterPlan::Get(state.sequence, plan.cascade);
  // A layer that the pass has not reached forgets keys of an earlier one: those behind the cut that
  // the sequence knows of are this pass's own.
  if (*RouterPlan::Get(state.layer, plan.seen) != c.pass) return;
  double* importance = RouterPlan::Get(state.sequence, plan.importance);
  if (keys < c.keys) std::fill(importance + keys, importance + c.keys, 0.0);
  c.keys = std::min(c.keys, keys);
}

// The share of the tokens that is alive behind a layer.
inline double Spatten::KeepTokens(const AttentionShape& s, int64_t layer) const {
  if (config_.schedule == Schedule::kLinear)
    return Between(s, layer, config_.keep_first, config_.keep_last);
  constexpr double kGpt2[] = {0.9, 0.7, 0.2, 0.2, 0.2, 0.1};
  return kGpt2[std::min<int64_t>(layer, std::size(kGpt2) - 1)];
}

// A share that goes from `first` behind from_layer to `last` behind the last layer.
inline double Spatten::Between(const AttentionShape& s, int64_t layer, double first,
                               double last) const {
  const int64_t from = config_.from_layer;
  if (layer < from) return 1;
  if (s.layers - 1 <= from) return last;
  const double way = static_cast<double>(layer - from) / static_cast<double>(s.layers - 1 - from);
  return first + (last - first) * std::min(way, 1.0);
}

// Leaves the best share * n of those alive, one at least. Ties go to the lowest index.
inline void Spatten::Keep(const Plan& plan, RouterState& state, double share,
                          const double* importance, int64_t n, uint8_t* alive) {
  float* scores = RouterPlan::Get(state.sequence, plan.scores);
  for (int64_t i = 0; i < n; ++i)
    scores[i] = alive[i] != 0 ? static_cast<float>(importance[i]) : -HUGE_VALF;

  constexpr double kRounding = 1e-9;  // 0.29 * 100 keeps 29
  const auto k = static_cast<int64_t>(share * static_cast<double>(n) + kRounding);
  uint32_t* best = RouterPlan::Get(state.sequence, plan.best);
  std::byte* scratch = RouterPlan::Get(state.sequence, plan.top);
  const int64_t kept = kernels::TopK(scores, n, std::clamp<int64_t>(k, 1, n), best, scratch).count;
  std::fill(alive, alive + n, uint8_t{0});
  for (int64_t i = 0; i < kept; ++i) alive[best[i]] = 1;
}
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SPATTEN_SPATTEN_H_
