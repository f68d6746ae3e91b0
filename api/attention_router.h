#ifndef SLUICE_API_ATTENTION_ROUTER_H_
#define SLUICE_API_ATTENTION_ROUTER_H_
// Attention routers: queries and keys -> AttentionPlan. An author writes a plain struct that
// satisfies AttentionRouterModel; AttentionRouterOf makes it virtual.
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "sluice/api/attention_plan.h"
#include "sluice/api/router.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
struct AttentionShape {
  int64_t max_queries = 0;  // queries of one chunk; 1 for decode
  int64_t max_kv = 0;       // keys the sequence may reach
  int heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0;
  int index_heads = 0, index_dim = 0;  // 0: the host has no indexer projections
  int workers = 1;
};

struct AttentionPlanInfo {
  AttentionShape shape;
  size_t workspace_bytes = 0;
  size_t state_bytes = 0;   // per (layer, sequence): summaries that grow with the keys
  int64_t max_rows = 0;     // list rows of one chunk
  int64_t entry_slots = 0;  // per row
  int64_t token_slots = 0;  // per row
  int64_t prefix_slots = 0;
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
  HeadsView<const float> q;  // [T, heads, d], after RoPE
  KvView k;                  // [kv_len, kv_heads, d], after RoPE
  KvView v;                  // [kv_len, kv_heads, dv]; only oracles and value-aware routers read it
  int64_t q_begin = 0;       // absolute position of q row 0
  absl::Span<const int32_t> q_positions;  // optional [q.rows]: see AttentionPlan
  int64_t prompt_end = 0;  // one past the last token of the prompt being fed; 0: unknown
  int32_t layer = -1;      // which of the model's layers asks; -1: unknown
  float scale = 1;         // logit scale, usually d^-1/2
  float rope_base = 0;     // 0: the model has no RoPE
  int32_t reserved = 0;
  HeadsView<const float> q_pre;  // before RoPE; optional
  KvView k_pre;                  // [kv_len, kv_heads, d] before RoPE; optional
  IndexInputs index;             // optional
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
    offsetof(AttentionInputs, scale) == offsetof(sluice_attention_inputs, scale) &&
    offsetof(AttentionInputs, rope_base) == offsetof(sluice_attention_inputs, rope_base) &&
    offsetof(AttentionInputs, q_pre) == offsetof(sluice_attention_inputs, q_pre) &&
    offsetof(AttentionInputs, k_pre) == offsetof(sluice_attention_inputs, k_pre) &&
    offsetof(AttentionInputs, index) == offsetof(sluice_attention_inputs, index_q));

template <class R>
concept AttentionRouterModel =
    (LearnedModel<R> || MadeFromConfig<R>)&&std::default_initializable<typename R::Config> &&
    std::derived_from<typename R::Plan, AttentionPlanInfo> &&
    requires(const R& r, const typename R::Plan& p, const AttentionShape& s,
             const AttentionInputs& in, std::byte* state, const RunContext& ctx, PlanWriter& out) {
      { R::kName } -> std::convertible_to<absl::string_view>;
      { R::kExactAtFullBudget } -> std::convertible_to<bool>;
      { R::kTokenCausal } -> std::convertible_to<bool>;
      { R::FullBudget() } -> std::same_as<typename R::Config>;
      { r.MakePlan(s) } -> std::same_as<absl::StatusOr<typename R::Plan>>;
      { r.Run(p, in, state, ctx, out) } -> std::same_as<absl::Status>;
    };
// kTokenCausal: the list of query t never depends on anything after t (else only the attended pairs
// are causal). kScatteredQueries (optional): takes AttentionInputs::q_positions. FullBudget(): the
// config at which the plan covers every causal pair; the conformance kit runs it against dense.

template <class R>
constexpr bool NeedsPreRope() {
  if constexpr (requires { R::kNeedsPreRope; }) return R::kNeedsPreRope;
  return false;
}
template <class R>
constexpr bool TakesScatteredQueries() {
  if constexpr (requires { R::kScatteredQueries; }) return R::kScatteredQueries;
  return false;
}

// What a host holds. `state` is caller-owned memory of info().state_bytes per (layer, sequence);
// all zero bytes mean empty. Routers summarise new keys in Run; after a truncation the host zeroes
// it.
class AttentionRouter {
 public:
  class Plan {
   public:
    virtual ~Plan() = default;
    virtual const AttentionPlanInfo& info() const = 0;
  };
  virtual ~AttentionRouter() = default;
  virtual absl::string_view name() const = 0;
  virtual bool token_causal() const = 0;
  virtual bool needs_pre_rope() const = 0;  // wants AttentionInputs::q_pre and k_pre
  virtual absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(const AttentionShape&) const = 0;
  virtual absl::Status Run(const Plan&, const AttentionInputs&, std::byte* state, const RunContext&,
                           PlanWriter& out) const = 0;
};

// Errors every attention router shares: what was given, what is allowed.
inline absl::Status CheckAttentionInputs(const AttentionShape& s, const AttentionInputs& in) {
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
  if (!in.q_positions.empty()) {
    if (in.q_positions.size() != static_cast<size_t>(in.q.rows))
      return bad(in.q_positions.size(), " positions for ", in.q.rows, " queries");
    if (in.q_positions.front() < 0 || in.q_positions.back() >= in.kv_len())
      return bad("positions [", in.q_positions.front(), ", ", in.q_positions.back(), "] of ",
                 in.kv_len(), " keys");
  } else if (in.q_begin < 0 || in.q_begin + in.q.rows > in.kv_len())
    return bad("queries [", in.q_begin, ", ", in.q_begin + in.q.rows, ") of ", in.kv_len(),
               " keys");
  return absl::OkStatus();
}
// For routers that do not take scattered queries.
inline absl::Status CheckContiguousQueries(absl::string_view name, const AttentionInputs& in) {
  if (in.q_positions.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " plans contiguous queries only, and got positions"));
}
inline absl::Status CheckAttentionShape(const AttentionShape& s) {
  if (s.max_queries <= 0 || s.max_kv <= 0 || s.head_dim <= 0 || s.workers <= 0 || s.kv_heads <= 0 ||
      s.heads <= 0 || s.heads % s.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("attention shape: queries ", s.max_queries, ", keys ", s.max_kv, ", heads ",
                     s.heads, "/", s.kv_heads, ", width ", s.head_dim, ", workers ", s.workers,
                     "; all must be positive and heads a multiple of KV heads"));
  }
  if (s.max_kv > (int64_t{1} << 31))
    return absl::InvalidArgumentError(
        absl::StrCat("attention shape: ", s.max_kv, " keys, at most 2^31"));
  return absl::OkStatus();
}

template <AttentionRouterModel R>
class AttentionRouterOf final : public AttentionRouter {
 public:
  explicit AttentionRouterOf(R r) : r_(std::move(r)) {}
  absl::string_view name() const override { return R::kName; }
  bool token_causal() const override { return R::kTokenCausal; }
  bool needs_pre_rope() const override { return NeedsPreRope<R>(); }
  absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(const AttentionShape& s) const override {
    SLUICE_RETURN_IF_ERROR(CheckAttentionShape(s));
    SLUICE_ASSIGN_OR_RETURN(auto plan, r_.MakePlan(s));
    return std::make_unique<const PlanOf>(std::move(plan));
  }
  absl::Status Run(const Plan& p, const AttentionInputs& in, std::byte* state,
                   const RunContext& ctx, PlanWriter& out) const override {
    SLUICE_RETURN_IF_ERROR(CheckAttentionInputs(p.info().shape, in));
    if (!TakesScatteredQueries<R>()) SLUICE_RETURN_IF_ERROR(CheckContiguousQueries(R::kName, in));
    return r_.Run(static_cast<const PlanOf&>(p).plan, in, state, ctx, out);
  }

 private:
  struct PlanOf final : Plan {
    explicit PlanOf(typename R::Plan p) : plan(std::move(p)) {}
    const AttentionPlanInfo& info() const override { return plan; }
    typename R::Plan plan;
  };
  R r_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_ATTENTION_ROUTER_H_
