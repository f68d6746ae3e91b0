#ifndef SLUICE_API_PLUGIN_H_
#define SLUICE_API_PLUGIN_H_
// Author models as a plug-in. One .cc per plug-in, linked with a version script that exports
// sluice_plugin_entry_v1:
//
//   #include "sluice/api/plugin.h"
//   #include "my_router.h"
//   SLUICE_PLUGIN("my_routers", "1.2.0", MyRouter)       // any number of models
//
// Models are not changed for it. No exception and no C++ type leaves the .so.
#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "sluice/api/abi/sluice_abi.h"
#include "sluice/api/agent_router.h"
#include "sluice/api/attention_router.h"
#include "sluice/api/config.h"
#include "sluice/api/pruner_codec.h"
#include "sluice/api/route_codec.h"
#include "sluice/api/router.h"

SLUICE_BEGIN_NAMESPACE
namespace plugin_internal {
inline sluice_code Fail(sluice_error* e, absl::StatusCode code, absl::string_view text) {
  if (e != nullptr && e->text != nullptr && e->capacity > 0) {
    const size_t n = std::min(text.size(), e->capacity - 1);
    std::memcpy(e->text, text.data(), n);
    e->text[n] = 0;
  }
  return static_cast<sluice_code>(code);
}
template <class F>
[[gnu::always_inline]] inline sluice_code Guard(sluice_error* e, F&& f) noexcept {
  try {
    const absl::Status s = f();
    return s.ok() ? 0 : Fail(e, s.code(), s.message());
  } catch (const std::bad_alloc&) {
    return Fail(e, absl::StatusCode::kResourceExhausted, "out of memory");
  } catch (const std::exception& x) {
    return Fail(e, absl::StatusCode::kInternal, x.what());
  } catch (...) {
    return Fail(e, absl::StatusCode::kInternal, "an exception that is no std::exception");
  }
}
struct ErrorText {
  ErrorText() { text[0] = 0; }  // the rest is written when there is something to say
  char text[512];
  sluice_error c{text, sizeof text};
  absl::Status Status(sluice_code code) const {
    return code == 0 ? absl::OkStatus() : absl::Status(static_cast<absl::StatusCode>(code), text);
  }
};

class LentExecutor final : public Executor {
 public:
  explicit LentExecutor(const sluice_executor& e) : e_(e) {}
  int num_workers() const override { return e_.num_workers; }
  void ParallelFor(int64_t n, int64_t grain, Body body) override {
    e_.parallel_for(
        e_.self, n, grain,
        [](void* arg, int64_t begin, int64_t end, int32_t worker) {
          (*static_cast<Body*>(arg))(begin, end, worker);
        },
        &body);
  }

 private:
  const sluice_executor& e_;
};
class LentWeights final : public WeightSource {
 public:
  explicit LentWeights(const sluice_weights& w) : w_(w) {}
  absl::StatusOr<int64_t> Int(const std::string& key) const override {
    int64_t out = 0;
    ErrorText e;
    const sluice_code code = w_.get_int(w_.self, key.c_str(), &out, &e.c);
    if (code != 0) return e.Status(code);
    return out;
  }
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t> shape) const override {
    uint64_t count = 1;
    for (uint64_t n : shape) {
      if (n != 0 && count > (uint64_t{1} << 40) / n)
        return absl::InvalidArgumentError(absl::StrCat(name, ": a shape of too many elements"));
      count *= n;
    }
    std::vector<float> out(count);
    ErrorText e;
    const sluice_code code =
        w_.read_f32(w_.self, name.c_str(), shape.data(), shape.size(), out.data(), count, &e.c);
    if (code != 0) return e.Status(code);
    return out;
  }

 private:
  const sluice_weights& w_;
};

inline void Declare(const WeightKeys& keys, const sluice_weight_sink& to) {
  for (const WeightKeys::Int& k : keys.ints) to.add_int(to.self, k.key.c_str(), k.value);
  for (const WeightKeys::Tensor& t : keys.tensors)
    to.add_tensor(to.self, t.name.c_str(), t.shape.data(), t.shape.size());
}

// Making a model from its config and weights: alike for every kind.
template <class R>
struct Maker {
  static std::vector<KeyValue> Options(const sluice_kv* kv, size_t n) {
    std::vector<KeyValue> kvs;
    for (size_t i = 0; i < n; ++i)
      kvs.emplace_back(absl::string_view(kv[i].key, kv[i].key_len),
                       absl::string_view(kv[i].value, kv[i].value_len));
    return kvs;
  }
  static sluice_code Create(const sluice_kv* kv, size_t n, const sluice_weights* weights,
                            void** out, sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      typename R::Config config;
      SLUICE_RETURN_IF_ERROR(ReadConfig(Options(kv, n), config));
      std::optional<LentWeights> lent;
      if (weights != nullptr) lent.emplace(*weights);
      SLUICE_ASSIGN_OR_RETURN(R r, MakeMethod<R>(config, lent ? &*lent : nullptr));
      *out = new R(std::move(r));
      return absl::OkStatus();
    });
  }
};
// What every table of routers has alike.
template <class R>
struct ModelC : Maker<R> {
  static void Destroy(void* r) noexcept { delete static_cast<R*>(r); }
  static void DestroyPlan(void* p) noexcept { delete static_cast<typename R::Plan*>(p); }
};
inline RunContext Context(const sluice_run_context& c, Executor& executor) {
  return {{static_cast<std::byte*>(c.workspace), c.workspace_bytes}, &executor};
}

template <RouterModel R>
struct RouterC : ModelC<R> {
  using Plan = typename R::Plan;
  static sluice_code Weights(const sluice_kv* kv, size_t n, const sluice_route_shape* s,
                             const sluice_weight_sink* sink, sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      typename R::Config config;
      SLUICE_RETURN_IF_ERROR(ReadConfig(ModelC<R>::Options(kv, n), config));
      Declare(router_internal::Weights<R>(config, route_codec::FromC(*s)), *sink);
      return absl::OkStatus();
    });
  }
  static sluice_code MakePlan(const void* r, const sluice_route_shape* s, void** out,
                              sluice_route_info* info, sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      SLUICE_ASSIGN_OR_RETURN(
          Plan plan, router_internal::MakePlan(*static_cast<const R*>(r), route_codec::FromC(*s)));
      SLUICE_RETURN_IF_ERROR(route_codec::ToC(R::kTraits.name, plan, info));
      *out = new Plan(std::move(plan));
      return absl::OkStatus();
    });
  }
  static sluice_code Run(const void* r, const void* p, const sluice_route_inputs* in,
                         const sluice_run_context* c, sluice_assignment* a,
                         sluice_error* e) noexcept {
    sluice_attention_state none = {};
    return RunWithState(r, p, in, &none, c, a, e);
  }
  static sluice_code RunWithState(const void* r, const void* p, const sluice_route_inputs* in,
                                  sluice_attention_state* s, const sluice_run_context* c,
                                  sluice_assignment* a, sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      LentExecutor executor(*c->executor);
      Assignment out = route_codec::FromC(*a);
      RouterState state = {static_cast<std::byte*>(s->layer), static_cast<std::byte*>(s->sequence),
                           s->keys};
      SLUICE_RETURN_IF_ERROR(
          router_internal::Run(*static_cast<const R*>(r), *static_cast<const Plan*>(p),
                               route_codec::FromC(*in), state, Context(*c, executor), out));
      s->keys = state.keys;
      route_codec::Take(out, a);
      return absl::OkStatus();
    });
  }
  static sluice_code DescribeUnit(const void* r, const void* p, int64_t unit, sluice_unit* out,
                                  sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      route_codec::ToC(router_internal::DescribeUnit(*static_cast<const R*>(r),
                                                     *static_cast<const Plan*>(p), unit),
                       out);
      return absl::OkStatus();
    });
  }
  static sluice_code RunUnit(const void* r, const void* p, const sluice_unit_rows* rows,
                             const sluice_run_context* c, sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      LentExecutor executor(*c->executor);
      return router_internal::RunUnit(*static_cast<const R*>(r), *static_cast<const Plan*>(p),
                                      route_codec::FromC(*rows), Context(*c, executor));
    });
  }
  static const sluice_router_v1* Table() {
    static const sluice_route_traits traits = route_codec::ToC(R::kTraits);
    static const std::string help = DescribeConfig<typename R::Config>();
    static const sluice_router_v1 t = {
        .struct_size = sizeof(sluice_router_v1),
        .traits = &traits,
        .config_help = help.c_str(),
        .create = ModelC<R>::Create,
        .destroy = ModelC<R>::Destroy,
        .weights = LearnedModel<R> ? Weights : nullptr,
        .make_plan = MakePlan,
        .destroy_plan = ModelC<R>::DestroyPlan,
        .run = Run,
        .describe_unit = NamesUnits<R> ? DescribeUnit : nullptr,
        .run_unit = RunsUnits<R> ? RunUnit : nullptr,
        .run_with_state = RemembersRuns<R> ? RunWithState : nullptr,
    };
    return &t;
  }
};

template <WeightPrunerModel P>
struct WeightPrunerC {
  static void Destroy(void* p) noexcept { delete static_cast<P*>(p); }
  static sluice_code Prune(const void* p, const sluice_prune_inputs* in,
                           const sluice_run_context* c, uint64_t* mask, sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      Mask start;
      SLUICE_ASSIGN_OR_RETURN(const PruneInputs inputs, pruner_codec::FromC(*in, start));
      SLUICE_RETURN_IF_ERROR(CheckPrune(P::kTraits, inputs));
      LentExecutor executor(*c->executor);
      Mask out(inputs.weights.rows, inputs.weights.cols, false);
      SLUICE_RETURN_IF_ERROR(
          static_cast<const P*>(p)->Prune(inputs, {{nullptr, 0}, &executor}, out));
      std::copy(out.words().begin(), out.words().end(), mask);
      return absl::OkStatus();
    });
  }
  static const sluice_pruner_v1* Table() {
    static const sluice_pruner_traits traits = pruner_codec::ToC(P::kTraits);
    static const std::string help = DescribeConfig<typename P::Config>();
    static const sluice_pruner_v1 t = {
        .struct_size = sizeof(sluice_pruner_v1),
        .traits = &traits,
        .config_help = help.c_str(),
        .create = Maker<P>::Create,
        .destroy = Destroy,
        .prune = Prune,
    };
    return &t;
  }
};

constexpr uint64_t Flag(bool set, int flag) { return set ? static_cast<uint64_t>(flag) : 0; }
constexpr uint64_t FlagsOf(const AttentionTraits& t, bool learned) {
  return Flag(t.exact_at_full_budget, SLUICE_EXACT_AT_FULL_BUDGET) |
         Flag(t.token_causal, SLUICE_TOKEN_CAUSAL) |
         Flag(t.chunk_invariant, SLUICE_CHUNK_INVARIANT) |
         Flag(t.bidirectional, SLUICE_BIDIRECTIONAL) |
         Flag(t.scattered_queries, SLUICE_SCATTERED_QUERIES) |
         Flag(t.reads_pre_rope, SLUICE_READS_PRE_ROPE) | Flag(t.reads_index, SLUICE_READS_INDEX) |
         Flag(t.reads_values, SLUICE_READS_VALUES) | Flag(t.reads_hidden, SLUICE_READS_HIDDEN) |
         Flag(learned, SLUICE_NEEDS_WEIGHTS);
}
inline AttentionShape ShapeOf(const sluice_attention_shape& s) {
  return {.max_queries = s.max_queries,
          .max_kv = s.max_kv,
          .heads = s.heads,
          .kv_heads = s.kv_heads,
          .head_dim = s.head_dim,
          .value_dim = s.value_dim,
          .index_heads = s.index_heads,
          .index_dim = s.index_dim,
          .workers = s.workers,
          .layers = s.layers,
          .width = s.width};
}

template <AttentionRouterModel R>
struct AttentionRouterC : ModelC<R> {
  using Plan = typename R::Plan;
  static sluice_code Weights(const sluice_kv* kv, size_t n, const sluice_attention_shape* s,
                             const sluice_weight_sink* sink, sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      if constexpr (LearnedModel<R>) {
        typename R::Config config;
        SLUICE_RETURN_IF_ERROR(ReadConfig(ModelC<R>::Options(kv, n), config));
        Declare(R::Weights(config, ShapeOf(*s)), *sink);
      }
      return absl::OkStatus();
    });
  }
  static sluice_code MakePlan(const void* r, const sluice_attention_shape* s, void** out,
                              sluice_attention_info* info, sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      const AttentionShape shape = ShapeOf(*s);
      SLUICE_RETURN_IF_ERROR(CheckAttentionShape(shape));
      SLUICE_ASSIGN_OR_RETURN(auto made, static_cast<const R*>(r)->MakePlan(shape));
      auto plan = std::make_unique<Plan>(std::move(made));
      plan->shape = shape;
      const AttentionPlanInfo& i = *plan;
      info->workspace_bytes = i.workspace_bytes;
      info->state_bytes = i.state_bytes;
      info->sequence_bytes = i.sequence_bytes;
      info->weight_slots = i.layout.weight_slots;
      info->perm_slots = i.layout.perm_slots;
      info->bias_slots = i.layout.bias_slots;
      info->max_tile = i.layout.max_tile;
      info->num_branches = i.layout.num_branches;
      std::memcpy(info->branches, i.layout.branches.data(), sizeof info->branches);
      *out = plan.release();
      return absl::OkStatus();
    });
  }
  static sluice_code Run(const void* r, const void* p, const sluice_attention_inputs* in,
                         sluice_attention_state* state, const sluice_run_context* c,
                         sluice_attention_plan* out, sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      LentExecutor executor(*c->executor);
      PlanBuilder builder(out);
      return static_cast<const R*>(r)->Run(
          *static_cast<const Plan*>(p), *reinterpret_cast<const AttentionInputs*>(in),
          *reinterpret_cast<RouterState*>(state), Context(*c, executor), builder);
    });
  }
  static sluice_code Observe(const void* r, const void* p, const sluice_attention_feedback* f,
                             sluice_attention_state* state, sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      const R& router = *static_cast<const R*>(r);
      const Plan& plan = *static_cast<const Plan*>(p);
      const auto& feedback = *reinterpret_cast<const AttentionFeedback*>(f);
      auto& s = *reinterpret_cast<RouterState*>(state);
      if constexpr (requires { router.Observe(plan, feedback, s); })
        return router.Observe(plan, feedback, s);
      return absl::OkStatus();
    });
  }
  static void Truncate(const void* r, const void* p, sluice_attention_state* state,
                       int64_t keys) noexcept {
    const R& router = *static_cast<const R*>(r);
    const Plan& plan = *static_cast<const Plan*>(p);
    auto& s = *reinterpret_cast<RouterState*>(state);
    if constexpr (requires { router.Truncate(plan, s, keys); }) router.Truncate(plan, s, keys);
  }
  static const sluice_attention_router_v2* Table() {
    static constexpr AttentionTraits kTraits = R::kTraits;
    static const sluice_attention_traits traits = {.struct_size = sizeof(sluice_attention_traits),
                                                   .name = kTraits.name,
                                                   .title = kTraits.title,
                                                   .arxiv = kTraits.arxiv,
                                                   .full_budget = kTraits.full_budget,
                                                   .small_budget = kTraits.small_budget,
                                                   .flags = FlagsOf(kTraits, LearnedModel<R>),
                                                   .feedback = kTraits.feedback,
                                                   .stages = kTraits.stages};
    static const std::string help = DescribeConfig<typename R::Config>();
    static const sluice_attention_router_v2 t = {
        .struct_size = sizeof(sluice_attention_router_v2),
        .traits = &traits,
        .config_help = help.c_str(),
        .create = ModelC<R>::Create,
        .destroy = ModelC<R>::Destroy,
        .weights = Weights,
        .make_plan = MakePlan,
        .destroy_plan = ModelC<R>::DestroyPlan,
        .run = Run,
        .observe = kTraits.feedback != 0 ? Observe : nullptr,
        .truncate = Truncate};
    return &t;
  }
};

static_assert(sizeof(AgentCandidate) == sizeof(sluice_agent_candidate) &&
              offsetof(AgentCandidate, block) == offsetof(sluice_agent_candidate, block) &&
              offsetof(AgentCandidate, chosen) == offsetof(sluice_agent_candidate, chosen) &&
              offsetof(AgentCandidate, tau) == offsetof(sluice_agent_candidate, tau) &&
              offsetof(AgentCandidate, p) == offsetof(sluice_agent_candidate, p));
static_assert(sizeof(AgentLive) == sizeof(sluice_agent_live) && sizeof(Block) == 1);

template <AgentRouterModel R>
struct AgentRouterC : ModelC<R> {
  using Plan = typename R::Plan;
  static absl::Span<const double> State(const Plan& p, const double* state) {
    return {state, static_cast<size_t>(p.state)};
  }
  static absl::Span<double> State(const Plan& p, double* state) {
    return {state, static_cast<size_t>(p.state)};
  }
  static sluice_code MakePlan(const void* r, const sluice_agent_graph* g, void** out,
                              sluice_agent_info* info, sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      auto graph = std::make_shared<AgentGraph>();
      graph->tasks.assign(g->tasks, g->tasks + g->num_tasks);
      const sluice_agent* const* at = g->agents;
      for (int32_t s = 0; s < g->num_stages; ++s) {
        std::vector<Agent>& stage = graph->stages.emplace_back();
        for (int32_t i = 0; i < g->stage_sizes[s]; ++i, ++at) {
          const sluice_agent& from = **at;
          Agent a;
          a.id = from.id;
          a.model = from.model;
          a.role = from.role;
          if (from.ability != nullptr) a.ability.assign(from.ability, from.ability + g->num_tasks);
          a.cost_usd = from.cost_usd;
          a.latency_s = from.latency_s;
          a.weight = from.weight;
          stage.push_back(std::move(a));
        }
      }
      SLUICE_RETURN_IF_ERROR(ValidateGraph(*graph));
      SLUICE_ASSIGN_OR_RETURN(Plan plan, static_cast<const R*>(r)->MakePlan(std::move(graph)));
      info->sums = plan.sums;
      info->state = plan.state;
      *out = new Plan(std::move(plan));
      return absl::OkStatus();
    });
  }
  static sluice_code InitialState(const void* r, const void* p, double* state,
                                  sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      const Plan& plan = *static_cast<const Plan*>(p);
      static_cast<const R*>(r)->InitialState(plan, State(plan, state));
      return absl::OkStatus();
    });
  }
  static sluice_code Run(const void* r, const void* p, const double* state,
                         const sluice_agent_request* q, sluice_agent_decision* d,
                         sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      const Plan& plan = *static_cast<const Plan*>(p);
      const auto agents = static_cast<size_t>(plan.graph->num_agents());
      AgentRequest ask;
      ask.id = q->id;
      ask.intent = {q->intent, plan.graph->tasks.size()};
      ask.features = {q->features, q->num_features};
      if (q->blocked != nullptr) ask.blocked = {reinterpret_cast<const Block*>(q->blocked), agents};
      if (q->live != nullptr) ask.live = {reinterpret_cast<const AgentLive*>(q->live), agents};
      if (q->struct_size >= offsetof(sluice_agent_request, follow) + sizeof q->follow) {
        ask.explore = q->explore;
        if (q->follow != nullptr) ask.follow = {q->follow, plan.graph->stages.size()};
      }
      AgentDecision decision;
      static thread_local AgentTrace trace;  // keeps its storage
      trace.clear();
      SLUICE_RETURN_IF_ERROR(static_cast<const R*>(r)->Run(plan, State(plan, state), ask, decision,
                                                           d->trace != nullptr ? &trace : nullptr));
      std::copy_n(decision.path.begin(), decision.stages, d->path);
      d->propensity = decision.propensity;
      d->trace_size = std::min(static_cast<int64_t>(trace.size()), d->trace_capacity);
      if (d->trace_size > 0)
        std::memcpy(d->trace, trace.data(), static_cast<size_t>(d->trace_size) * sizeof trace[0]);
      return absl::OkStatus();
    });
  }
  static sluice_code Observe(const void* r, const void* p, const sluice_agent_outcome* o,
                             sluice_add_sums add, void* to, sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      const Plan& plan = *static_cast<const Plan*>(p);
      AgentOutcome outcome;
      outcome.id = o->id;
      outcome.intent = {o->intent, plan.graph->tasks.size()};
      outcome.features = {o->features, o->num_features};
      outcome.path = {o->path, plan.graph->stages.size()};
      outcome.propensity = o->propensity;
      outcome.quality = o->quality;
      outcome.accepted = o->accepted != 0;
      outcome.cost_usd = o->cost_usd;
      outcome.latency_s = o->latency_s;
      std::vector<SumDelta> deltas;
      static_cast<const R*>(r)->Observe(plan, outcome, deltas);
      std::vector<sluice_sum_delta> sums;
      sums.reserve(deltas.size());
      for (const SumDelta& d : deltas) sums.push_back({d.cell, 0, d.add});
      add(to, sums.data(), sums.size());
      return absl::OkStatus();
    });
  }
  static sluice_code Fold(const void* r, const void* p, const int64_t* sums, double* state,
                          sluice_error* e) noexcept {
    return Guard(e, [&]() -> absl::Status {
      const Plan& plan = *static_cast<const Plan*>(p);
      static_cast<const R*>(r)->Fold(plan, {sums, static_cast<size_t>(plan.sums)},
                                     State(plan, state));
      return absl::OkStatus();
    });
  }
  static const sluice_agent_router_v1* Table() {
    static const std::string name(R::kName), help = DescribeConfig<typename R::Config>();
    static const sluice_agent_router_v1 t = {sizeof(sluice_agent_router_v1),
                                             name.c_str(),
                                             Flag(LearnedModel<R>, SLUICE_NEEDS_WEIGHTS),
                                             help.c_str(),
                                             ModelC<R>::Create,
                                             ModelC<R>::Destroy,
                                             MakePlan,
                                             ModelC<R>::DestroyPlan,
                                             InitialState,
                                             Run,
                                             Observe,
                                             Fold};
    return &t;
  }
};

// absl::Span does not say how it is laid out.
inline bool SpansArePointerAndSize() {
  static const int32_t at[3] = {};
  AttentionInputs i;
  i.q_positions = at;
  const auto* c = reinterpret_cast<const sluice_attention_inputs*>(&i);
  return std::memcmp(&c->q_positions, std::array<const void*, 1>{at}.data(), sizeof(void*)) == 0 &&
         std::memcmp(&c->num_positions, std::array<size_t, 1>{3}.data(), sizeof(size_t)) == 0;
}

template <class... R>
const sluice_plugin_v1* Plugin(const char* name, const char* version,
                               uint32_t host_major) noexcept {
  if (host_major != SLUICE_ABI_MAJOR) return nullptr;
  try {
    static const auto* tables = [] {
      struct Tables {
        std::vector<const sluice_router_v1*> routers;
        std::vector<const sluice_attention_router_v2*> attention;
        std::vector<const sluice_agent_router_v1*> agents;
        std::vector<const sluice_pruner_v1*> pruners;
      };
      auto* t = new Tables;
      const auto add = [&]<class M>(M*) {
        if constexpr (AttentionRouterModel<M>) {
          t->attention.push_back(AttentionRouterC<M>::Table());
        } else if constexpr (AgentRouterModel<M>) {
          t->agents.push_back(AgentRouterC<M>::Table());
        } else if constexpr (WeightPrunerModel<M>) {
          t->pruners.push_back(WeightPrunerC<M>::Table());
        } else {
          static_assert(RouterModel<M>,
                        "M satisfies none of RouterModel, AttentionRouterModel, AgentRouterModel "
                        "and WeightPrunerModel");
          t->routers.push_back(RouterC<M>::Table());
        }
      };
      (add(static_cast<R*>(nullptr)), ...);
      return t;
    }();
    if (!SpansArePointerAndSize()) return nullptr;
    static const sluice_plugin_v1 p = {sizeof(sluice_plugin_v1),
                                       SLUICE_PLUGIN_MAGIC,
                                       SLUICE_ABI_MAJOR,
                                       SLUICE_ABI_MINOR,
                                       0,
                                       name,
                                       version,
                                       tables->routers.size(),
                                       tables->routers.data(),
                                       tables->attention.size(),
                                       tables->attention.data(),
                                       tables->agents.size(),
                                       tables->agents.data(),
                                       tables->pruners.size(),
                                       tables->pruners.data()};
    return &p;
  } catch (...) {
    return nullptr;
  }
}
}  // namespace plugin_internal
SLUICE_END_NAMESPACE

#define SLUICE_PLUGIN_TEXT_(x) #x
#define SLUICE_PLUGIN_TEXT(x) SLUICE_PLUGIN_TEXT_(x)
// name and version: string literals.
#define SLUICE_PLUGIN(name, version, ...)                                                    \
  extern "C" __attribute__((section(SLUICE_MANIFEST_SECTION), used))                         \
  const char sluice_plugin_manifest[] =                                                      \
      "sluice-plugin 1\nname=" name "\nversion=" version "\nabi=" SLUICE_PLUGIN_TEXT(        \
          SLUICE_ABI_MAJOR) "." SLUICE_PLUGIN_TEXT(SLUICE_ABI_MINOR) "\nmin_host_minor=0\n"; \
  extern "C" __attribute__((visibility("default"))) const sluice_plugin_v1*                  \
  sluice_plugin_entry_v1(uint32_t host_major, uint32_t) {                                    \
    return ::sluice::plugin_internal::Plugin<__VA_ARGS__>(name, version, host_major);        \
  }
#endif  // SLUICE_API_PLUGIN_H_
