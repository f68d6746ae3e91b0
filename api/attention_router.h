#ifndef SLUICE_API_ATTENTION_ROUTER_H_
#define SLUICE_API_ATTENTION_ROUTER_H_
// Attention routers: queries and keys -> AttentionPlan. An author writes a plain struct that
// satisfies AttentionRouterModel and says in one Traits record what it asks of its host;
// AttentionRouterOf makes it virtual, api/plugin.h makes it C.
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "sluice/api/attention_plan.h"
#include "sluice/api/plan_builder.h"
#include "sluice/api/router.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// What a router wants to learn of its plans once they have run.
enum Feedback : uint32_t {
  kNoFeedback = 0,
  kKeyMass = SLUICE_FEEDBACK_KEY_MASS,    // sums of probability per head and key
  kHeadNorm = SLUICE_FEEDBACK_HEAD_NORM,  // sums of |o| per head
  kRowMax = SLUICE_FEEDBACK_ROW_MAX,      // the largest probability of a query and head
  kLogSumExp = SLUICE_FEEDBACK_LSE,
};

// What a router asks for and promises; the conformance kit, hosts and the plug-in ABI go by it.
struct AttentionTraits {
  const char* name = "";
  const char* title = "";  // of the paper; empty: none
  const char* arxiv = "";  // its arXiv id
  // Promises.
  bool exact_at_full_budget = true;  // at full_budget the plan covers every causal pair
  bool token_causal = false;         // the list of query t never depends on anything after t
  bool chunk_invariant = true;       // chunks of whole 64-query tiles give the lists of one call
  bool bidirectional = false;        // for encoders: no causal mask, all tokens in one call
  // Needs.
  bool scattered_queries = false;  // takes AttentionInputs::q_positions
  bool reads_pre_rope = false;     // q_pre and k_pre
  bool reads_index = false;        // index projections, where the host has them
  bool reads_values = false;       // v
  bool reads_hidden = false;       // the layer's input
  uint32_t feedback = kNoFeedback;
  int stages = 1;  // > 1: Run, attend, Run again seeing attended_lse
  // Config texts ("k=4,block=16"); full_budget: nothing is skipped; small_budget: it must skip on a
  // few hundred keys.
  const char* full_budget = "";
  const char* small_budget = "";
};

struct AttentionShape {
  int64_t max_queries = 0;  // queries of one chunk; 1 for decode
  int64_t max_kv = 0;       // keys the sequence may reach
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int value_dim = 0;
  int index_heads = 0;  // 0: the host has no indexer projections
  int index_dim = 0;
  int workers = 1;
  int layers = 1;     // of the model; 0: the host does not know how many
  int64_t width = 0;  // of hidden states; 0: the host gives none
};

struct AttentionPlanInfo {
  AttentionShape shape;
  size_t workspace_bytes = 0;
  size_t state_bytes = 0;     // per (layer, sequence): summaries that grow with the keys
  size_t sequence_bytes = 0;  // per sequence, shared by its layers (cascades)
  PlanLayout layout;
  bool keeps_plans = false;  // RunContext::plans must lend a builder a layer
  // All that any query may see, whatever the data: the first `reach_first` keys of its sequence and
  // the last `reach_last` up to itself, so that a host can drop the others. -1: any key.
  int64_t reach_first = -1;
  int64_t reach_last = -1;
};

// Projections of a learned token indexer (DSA, HISA): per token `heads` index queries and weights,
// one index key.
struct IndexInputs {
  HeadsView<const float> q;        // [T, index_heads, index_dim]
  KvView k;                        // [kv_len, 1, index_dim], f32
  MatrixView<const float> weight;  // [T, index_heads]
};

// Laid out as sluice_attention_inputs, so that a plug-in reads it where it lies.
struct AttentionInputs {
  size_t struct_size = sizeof(AttentionInputs);
  HeadsView<const float> q;               // [T, heads, d], after RoPE
  KvView k;                               // [kv_len, kv_heads, d], after RoPE
  KvView v;                               // [kv_len, kv_heads, dv]
  int64_t q_begin = 0;                    // absolute position of q row 0
  absl::Span<const int32_t> q_positions;  // optional [q.rows]: see AttentionPlan
  int64_t prompt_end = 0;          // one past the last token of the prompt being fed; 0: unknown
  int32_t layer = -1;              // which of the model's layers asks; -1: unknown
  float scale = 1;                 // logit scale, usually d^-1/2
  float rope_base = 0;             // 0: the model has no RoPE
  int32_t stage = 0;               // of Traits::stages
  HeadsView<const float> q_pre;    // before RoPE; optional
  KvView k_pre;                    // [kv_len, kv_heads, d] before RoPE; optional
  IndexInputs index;               // optional
  MatrixView<const float> hidden;  // [T, width], the layer's normalised input; optional
  MatrixView<const float> attended_lse;  // [T, heads] of all earlier stages (natural log)
  int64_t kv_len() const { return k.rows; }
};
static_assert(sizeof(AttentionInputs) == sizeof(sluice_attention_inputs) &&
              sizeof(KvView) == sizeof(sluice_view) &&
              offsetof(KvView, dtype) == offsetof(sluice_view, dtype) &&
              offsetof(KvView, rows) == offsetof(sluice_view, rows) &&
              offsetof(KvView, head_stride) == offsetof(sluice_view, head_stride) &&
              offsetof(HeadsView<const float>, dtype) == offsetof(sluice_view, dtype) &&
              offsetof(HeadsView<const float>, rows) == offsetof(sluice_view, rows));
static_assert(
    offsetof(AttentionInputs, k) == offsetof(sluice_attention_inputs, k) &&
    offsetof(AttentionInputs, q_begin) == offsetof(sluice_attention_inputs, q_begin) &&
    offsetof(AttentionInputs, q_positions) == offsetof(sluice_attention_inputs, q_positions) &&
    offsetof(AttentionInputs, prompt_end) == offsetof(sluice_attention_inputs, prompt_end) &&
    offsetof(AttentionInputs, layer) == offsetof(sluice_attention_inputs, layer) &&
    offsetof(AttentionInputs, rope_base) == offsetof(sluice_attention_inputs, rope_base) &&
    offsetof(AttentionInputs, stage) == offsetof(sluice_attention_inputs, stage) &&
    offsetof(AttentionInputs, k_pre) == offsetof(sluice_attention_inputs, k_pre) &&
    offsetof(AttentionInputs, index) == offsetof(sluice_attention_inputs, index_q) &&
    offsetof(AttentionInputs, hidden) == offsetof(sluice_attention_inputs, hidden) &&
    offsetof(AttentionInputs, attended_lse) == offsetof(sluice_attention_inputs, attended_lse));

static_assert(sizeof(RouterState) == sizeof(sluice_attention_state) &&
              offsetof(RouterState, keys) == offsetof(sluice_attention_state, keys));

// What the executor measured of a plan; laid out as sluice_attention_feedback.
struct AttentionFeedback {
  size_t struct_size = sizeof(AttentionFeedback);
  int64_t q_begin = 0;
  int64_t q_count = 0;
  int64_t kv_len = 0;
  int32_t layer = -1;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t reserved = 0;
  const float* key_mass = nullptr;   // [heads, kv_len]
  const float* head_norm = nullptr;  // [heads]
  const float* row_max = nullptr;    // [q_count, heads]
  const float* lse = nullptr;        // [q_count, heads]
};
static_assert(sizeof(AttentionFeedback) == sizeof(sluice_attention_feedback) &&
              offsetof(AttentionFeedback, lse) == offsetof(sluice_attention_feedback, lse));

template <class R>
concept AttentionRouterModel =
    (LearnedModel<R> || MadeFromConfig<R>)&&std::default_initializable<typename R::Config> &&
    std::derived_from<typename R::Plan, AttentionPlanInfo> &&
    requires(const R& r, const typename R::Plan& p, const AttentionShape& s,
             const AttentionInputs& in, RouterState& state, const RunContext& ctx,
             PlanBuilder& out) {
      { R::kTraits } -> std::convertible_to<AttentionTraits>;
      { r.MakePlan(s) } -> std::same_as<absl::StatusOr<typename R::Plan>>;
      { r.Run(p, in, state, ctx, out) } -> std::same_as<absl::Status>;
    };
// Optional members:
//   absl::Status Observe(const Plan&, const AttentionFeedback&, RouterState&) const
//       with Traits::feedback; called after each plan has run.
//   void Truncate(const Plan&, RouterState&, int64_t keys) const
//       when forgetting takes more than a smaller RouterState::keys.
//   static WeightKeys Weights(const Config&, const AttentionShape&)
//       of learned routers: what Create reads.

// What a host holds.
class AttentionRouter {
 public:
  class Plan {
   public:
    virtual ~Plan() = default;
    virtual const AttentionPlanInfo& info() const = 0;
  };
  virtual ~AttentionRouter() = default;
  virtual const AttentionTraits& traits() const = 0;
  absl::string_view name() const { return traits().name; }
  virtual absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(const AttentionShape&) const = 0;
  // Allocation-free. On success the state speaks of in.kv_len() keys.
  virtual absl::Status Run(const Plan&, const AttentionInputs&, RouterState&, const RunContext&,
                           PlanBuilder& out) const = 0;
  virtual absl::Status Observe(const Plan&, const AttentionFeedback&, RouterState&) const {
    return absl::OkStatus();
  }
  // Forgets keys from `keys` on.
  virtual void Truncate(const Plan&, RouterState& state, int64_t keys) const {
    state.keys = std::min(state.keys, keys);
  }
  // The router that serves a layer over so many keys: itself, or a composition's part.
  virtual const AttentionRouter& Serving(int64_t /*layer*/, int64_t /*keys*/) const {
    return *this;
  }
};

// Errors every attention router shares: what was given, what is allowed.
inline absl::Status CheckAttentionInputs(const AttentionTraits& t, const AttentionShape& s,
                                         const AttentionInputs& in) {
  const auto bad = [](auto&&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("attention inputs: ", parts...));
  };
  if (in.q.rows < 0 || in.q.rows > s.max_queries)
    return bad(in.q.rows, " queries, planned for at most ", s.max_queries);
  if (in.kv_len() > s.max_kv) return bad(in.kv_len(), " keys, planned for at most ", s.max_kv);
  if (in.q.heads != s.heads || in.k.heads != s.kv_heads)
    return bad(in.q.heads, " query and ", in.k.heads, " KV heads, planned for ", s.heads, " and ",
               s.kv_heads);
  if (in.q.dim != s.head_dim || in.k.dim != s.head_dim)
    return bad("head width ", in.q.dim, " and ", in.k.dim, ", planned for ", s.head_dim);
  if (in.stage < 0 || in.stage >= t.stages) return bad("stage ", in.stage, " of ", t.stages);
  if (in.stage > 0 && (in.attended_lse.rows < in.q.rows || in.attended_lse.cols != s.heads))
    return bad("stage ", in.stage, " needs attended_lse [", in.q.rows, ", ", s.heads, "]");
  if (t.reads_pre_rope && (in.q_pre.rows < in.q.rows || in.k_pre.rows < in.k.rows))
    return absl::FailedPreconditionError(
        absl::StrCat(t.name,
                     " reads queries and keys from before RoPE: the host must pass q_pre and "
                     "k_pre"));
  if (t.reads_hidden && (in.hidden.rows < in.q.rows || in.hidden.cols != s.width))
    return absl::FailedPreconditionError(
        absl::StrCat(t.name, " reads the layer's input: the host must pass hidden [", in.q.rows,
                     ", ", s.width, "]"));
  if (!in.q_positions.empty()) {
    if (!t.scattered_queries)
      return bad(t.name, " plans contiguous queries only, and got positions");
    if (std::ssize(in.q_positions) != in.q.rows)
      return bad(in.q_positions.size(), " positions for ", in.q.rows, " queries");
    if (in.q_positions.front() < 0 || in.q_positions.back() >= in.kv_len())
      return bad("positions [", in.q_positions.front(), ", ", in.q_positions.back(), "] of ",
                 in.kv_len(), " keys");
  } else if (in.q_begin < 0 || in.q_begin + in.q.rows > in.kv_len()) {
    return bad("queries [", in.q_begin, ", ", in.q_begin + in.q.rows, ") of ", in.kv_len(),
               " keys");
  }
  if (t.bidirectional && in.q.rows != in.kv_len())
    return bad(t.name, " has no causal mask and takes all tokens in one call, and got queries [",
               in.q_begin, ", ", in.q_begin + in.q.rows, ") of ", in.kv_len(), " keys");
  return absl::OkStatus();
}
inline absl::Status CheckAttentionShape(const AttentionShape& s) {
  constexpr int64_t kMost = int64_t{1} << 31;
  if (s.max_queries <= 0 || s.max_kv <= 0 || s.head_dim <= 0 || s.workers <= 0 || s.kv_heads <= 0 ||
      s.heads <= 0 || s.layers < 0 || s.heads % s.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "attention shape: queries ", s.max_queries, ", keys ", s.max_kv, ", heads ", s.heads, "/",
        s.kv_heads, ", width ", s.head_dim, ", workers ", s.workers, ", layers ", s.layers,
        "; all must be positive (layers 0: not known) and heads a multiple of KV heads"));
  }
  if (s.max_kv > kMost || s.max_queries > kMost)
    return absl::InvalidArgumentError(absl::StrCat("attention shape: ", s.max_queries,
                                                   " queries of ", s.max_kv,
                                                   " keys, at most 2^31 of each"));
  return absl::OkStatus();
}

template <AttentionRouterModel R>
class AttentionRouterOf final : public AttentionRouter {
 public:
  explicit AttentionRouterOf(R r) : r_(std::move(r)) {}
  const AttentionTraits& traits() const override { return kTraits; }
  absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(const AttentionShape& s) const override {
    SLUICE_RETURN_IF_ERROR(CheckAttentionShape(s));
    SLUICE_ASSIGN_OR_RETURN(auto plan, r_.MakePlan(s));
    plan.shape = s;
    return std::make_unique<const PlanOf>(std::move(plan));
  }
  absl::Status Run(const Plan& p, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const override {
    SLUICE_RETURN_IF_ERROR(CheckAttentionInputs(kTraits, p.info().shape, in));
    SLUICE_RETURN_IF_ERROR(r_.Run(static_cast<const PlanOf&>(p).plan, in, state, ctx, out));
    state.keys = in.kv_len();
    return absl::OkStatus();
  }
  absl::Status Observe(const Plan& p, const AttentionFeedback& f,
                       RouterState& state) const override {
    if constexpr (requires { r_.Observe(static_cast<const PlanOf&>(p).plan, f, state); }) {
      return r_.Observe(static_cast<const PlanOf&>(p).plan, f, state);
    }
    return absl::OkStatus();
  }
  void Truncate(const Plan& p, RouterState& state, int64_t keys) const override {
    if constexpr (requires { r_.Truncate(static_cast<const PlanOf&>(p).plan, state, keys); }) {
      r_.Truncate(static_cast<const PlanOf&>(p).plan, state, keys);
    }
    state.keys = std::min(state.keys, keys);
  }

 private:
  static constexpr AttentionTraits kTraits = R::kTraits;
  struct PlanOf final : Plan {
    explicit PlanOf(typename R::Plan p) : plan(std::move(p)) {}
    const AttentionPlanInfo& info() const override { return plan; }
    typename R::Plan plan;
  };
  R r_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_ATTENTION_ROUTER_H_
