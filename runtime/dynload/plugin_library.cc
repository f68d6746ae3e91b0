#include "sluice/runtime/dynload/plugin_library.h"

#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "sluice/api/check.h"
#include "sluice/api/plan_codec.h"
#include "sluice/api/plugin.h"
#include "sluice/runtime/dynload/child_check.h"

#ifndef SLUICE_PLUGIN_FOLDER
#define SLUICE_PLUGIN_FOLDER "/usr/lib/sluice/plugins"
#endif

SLUICE_BEGIN_NAMESPACE
namespace {
using plugin_internal::ErrorText;

void ParallelFor(void* self, int64_t n, int64_t grain, sluice_body body, void* arg) {
  static_cast<Executor*>(self)->ParallelFor(
      n, grain, [&](int64_t begin, int64_t end, int worker) { body(arg, begin, end, worker); });
}
// What a run may use, for as long as it lasts.
struct LentContext {
  explicit LentContext(const RunContext& ctx)
      : executor{ctx.executor != nullptr ? ctx.executor : &alone,
                 ctx.executor != nullptr ? ctx.executor->num_workers() : 1, 0, ParallelFor},
        c{sizeof c, ctx.workspace.data, ctx.workspace.bytes, &executor} {}
  LentContext(const LentContext&) = delete;  // c points into it
  InlineExecutor alone;                      // where the caller lends none
  const sluice_executor executor;
  const sluice_run_context c;
};
sluice_weights Lend(const WeightSource& w) {
  sluice_weights c{sizeof c, &w, nullptr, nullptr};
  c.get_int = [](const void* self, const char* key, int64_t* out, sluice_error* e) noexcept {
    return plugin_internal::Guard(e, [&]() -> absl::Status {
      SLUICE_ASSIGN_OR_RETURN(*out, static_cast<const WeightSource*>(self)->Int(key));
      return absl::OkStatus();
    });
  };
  c.read_f32 = [](const void* self, const char* name, const uint64_t* shape, size_t rank,
                  float* out, size_t count, sluice_error* e) noexcept {
    return plugin_internal::Guard(e, [&]() -> absl::Status {
      SLUICE_ASSIGN_OR_RETURN(
          const std::vector<float> x,
          static_cast<const WeightSource*>(self)->ReadF32(name, absl::MakeConstSpan(shape, rank)));
      if (x.size() != count)
        return absl::InvalidArgumentError(
            absl::StrCat(name, " has ", x.size(), " elements, wanted ", count));
      std::copy(x.begin(), x.end(), out);
      return absl::OkStatus();
    });
  };
  return c;
}
std::vector<sluice_kv> ToC(absl::Span<const KeyValue> kvs) {
  std::vector<sluice_kv> kv;
  for (const auto& [k, v] : kvs) kv.push_back({k.data(), k.size(), v.data(), v.size()});
  return kv;
}
template <class Table>
absl::StatusOr<void*> CreateSelf(const Table* t, absl::Span<const KeyValue> kvs,
                                 const WeightSource* weights) {
  const std::vector<sluice_kv> kv = ToC(kvs);
  sluice_weights lent{};
  if (weights != nullptr) lent = Lend(*weights);
  void* self = nullptr;
  ErrorText e;
  const sluice_code code =
      t->create(kv.data(), kv.size(), weights != nullptr ? &lent : nullptr, &self, &e.c);
  if (code != 0) return e.Status(code);
  if (self == nullptr) return absl::InternalError("the plug-in made nothing and said OK");
  return self;
}

// What a plug-in's method says that it reads of its weights.
template <class Table, class Shape>
absl::StatusOr<WeightKeys> DeclaredWeights(const Table* t, absl::Span<const KeyValue> kvs,
                                           const Shape& shape) {
  WeightKeys keys;
  if (t->weights == nullptr) return keys;
  sluice_weight_sink sink = {};
  sink.self = &keys;
  sink.add_int = [](void* self, const char* key, int64_t value) {
    static_cast<WeightKeys*>(self)->ints.push_back({key, value});
  };
  sink.add_tensor = [](void* self, const char* name, const int64_t* dims, size_t rank) {
    static_cast<WeightKeys*>(self)->tensors.push_back({name, {dims, dims + rank}});
  };
  const std::vector<sluice_kv> kv = ToC(kvs);
  ErrorText e;
  const sluice_code code = t->weights(kv.data(), kv.size(), &shape, &sink, &e.c);
  if (code != 0) return e.Status(code);
  return keys;
}

template <class Base, class Info, class Table>
struct RemotePlan final : Base {
  RemotePlan(const Table* table, void* p) : t(table), plan(p) {}
  ~RemotePlan() override { t->destroy_plan(plan); }
  const Info& info() const override { return info_; }
  const Table* t;
  void* plan;
  Info info_;
};

class RemoteRouter final : public Router {
 public:
  RemoteRouter(const sluice_router_v1* t, void* self)
      : t_(t), self_(self), traits_(route_codec::FromC(*t->traits)) {}
  ~RemoteRouter() override { t_->destroy(self_); }
  const RouteTraits& traits() const override { return traits_; }
  absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(const RouteShape& s) const override {
    SLUICE_RETURN_IF_ERROR(CheckRouteShape(traits_, s));
    const sluice_route_shape shape = route_codec::ToC(s);
    sluice_route_info info = {};
    info.struct_size = sizeof info;
    void* p = nullptr;
    ErrorText e;
    const sluice_code code = t_->make_plan(self_, &shape, &p, &info, &e.c);
    if (code != 0) return e.Status(code);
    auto plan = std::make_unique<PlanOf>(t_, p);
    plan->info_ = route_codec::FromC(s, info);
    if (info.units <= 0 || info.max_entries < 0 || info.max_dropped < 0)
      return absl::InternalError(
          absl::StrCat(traits_.name, ": the plug-in plans ", info.units, " units, ",
                       info.max_entries, " entries, ", info.max_dropped,
                       " dropped pairs; wanted at least one unit and no negative size"));
    if (info.state_bytes > 0 && !remembers())
      return absl::InternalError(absl::StrCat(traits_.name, ": the plug-in plans a state of ",
                                              info.state_bytes,
                                              " bytes and has no run_with_state"));
    return plan;
  }
  using Router::Run;
  absl::Status Run(const Plan& plan, const RouteInputs& in, RouterState& state,
                   const RunContext& ctx, Assignment& out) const override {
    SLUICE_RETURN_IF_ERROR(CheckRouteRun(traits_, plan.info(), in, state, ctx, out));
    const LentContext context(ctx);
    const sluice_route_inputs inputs = route_codec::ToC(in);
    sluice_assignment record = route_codec::ToC(out);
    record.items = in.items;
    record.units = plan.info().shape.units;
    out.row_ptr[0] = 0;
    ErrorText e;
    if (plan.info().state_bytes == 0) {
      const sluice_code code = t_->run(self_, Of(plan), &inputs, &context.c, &record, &e.c);
      if (code != 0) return e.Status(code);
      return route_codec::TakeChecked(traits_, in.items, plan.info().shape.units, record, &out);
    }
    sluice_attention_state s = {state.layer, state.sequence, state.keys};
    const sluice_code code =
        t_->run_with_state(self_, Of(plan), &inputs, &s, &context.c, &record, &e.c);
    if (code != 0) return e.Status(code);
    SLUICE_RETURN_IF_ERROR(
        route_codec::TakeChecked(traits_, in.items, plan.info().shape.units, record, &out));
    ++state.keys;
    return absl::OkStatus();
  }
  UnitInfo DescribeUnit(const Plan& plan, int64_t unit) const override {
    if (t_->describe_unit == nullptr) return {};
    sluice_unit c = {sizeof c, 0, 0, 1.0, 0};
    ErrorText e;
    if (t_->describe_unit(self_, Of(plan), unit, &c, &e.c) != 0) return {};
    return route_codec::FromC(c);
  }
  absl::Status RunUnit(const Plan& plan, const UnitRows& rows,
                       const RunContext& ctx) const override {
    if (t_->run_unit == nullptr)
      return absl::UnimplementedError(absl::StrCat(traits_.name, " computes no unit itself"));
    const LentContext context(ctx);
    const sluice_unit_rows c = route_codec::ToC(rows);
    ErrorText e;
    return e.Status(t_->run_unit(self_, Of(plan), &c, &context.c, &e.c));
  }

 private:
  using PlanOf = RemotePlan<Router::Plan, RoutePlanInfo, sluice_router_v1>;
  bool remembers() const {
    const size_t with = offsetof(sluice_router_v1, run_with_state) + sizeof(void*);
    return t_->struct_size >= with && t_->run_with_state != nullptr;
  }
  static const void* Of(const Plan& p) { return static_cast<const PlanOf&>(p).plan; }
  const sluice_router_v1* t_;
  void* self_;
  RouteTraits traits_;
};

// The traits that a table describes. Its texts live as long as the library, which is never
// unloaded.
AttentionTraits TraitsOf(const sluice_attention_router_v2& t) {
  const sluice_attention_traits& from = *t.traits;
  const auto text = [](const char* s) { return s != nullptr ? s : ""; };
  const auto has = [&](uint64_t flag) { return (from.flags & flag) != 0; };
  return {.name = text(from.name),
          .title = text(from.title),
          .arxiv = text(from.arxiv),
          .exact_at_full_budget = has(SLUICE_EXACT_AT_FULL_BUDGET),
          .token_causal = has(SLUICE_TOKEN_CAUSAL),
          .chunk_invariant = has(SLUICE_CHUNK_INVARIANT),
          .bidirectional = has(SLUICE_BIDIRECTIONAL),
          .scattered_queries = has(SLUICE_SCATTERED_QUERIES),
          .reads_pre_rope = has(SLUICE_READS_PRE_ROPE),
          .reads_index = has(SLUICE_READS_INDEX),
          .reads_values = has(SLUICE_READS_VALUES),
          .reads_hidden = has(SLUICE_READS_HIDDEN),
          .feedback = from.feedback,
          .stages = from.stages,
          .full_budget = text(from.full_budget),
          .small_budget = text(from.small_budget)};
}
sluice_attention_shape ShapeOf(const AttentionShape& s) {
  return {.struct_size = sizeof(sluice_attention_shape),
          .max_queries = s.max_queries,
          .max_kv = s.max_kv,
          .width = s.width,
          .heads = s.heads,
          .kv_heads = s.kv_heads,
          .head_dim = s.head_dim,
          .value_dim = s.value_dim,
          .index_heads = s.index_heads,
          .index_dim = s.index_dim,
          .workers = s.workers,
          .layers = s.layers};
}

class RemoteAttentionRouter final : public AttentionRouter {
 public:
  RemoteAttentionRouter(const sluice_attention_router_v2* t, void* self)
      : t_(t), self_(self), traits_(TraitsOf(*t)) {}
  ~RemoteAttentionRouter() override { t_->destroy(self_); }
  const AttentionTraits& traits() const override { return traits_; }

  absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(const AttentionShape& s) const override {
    SLUICE_RETURN_IF_ERROR(CheckAttentionShape(s));
    const sluice_attention_shape shape = ShapeOf(s);
    sluice_attention_info i{};
    i.struct_size = sizeof i;
    void* p = nullptr;
    ErrorText e;
    const sluice_code code = t_->make_plan(self_, &shape, &p, &i, &e.c);
    if (code != 0) return e.Status(code);
    auto plan = std::make_unique<PlanOf>(t_, p);
    AttentionPlanInfo& info = plan->info_;
    info.shape = s;
    info.workspace_bytes = i.workspace_bytes;
    info.state_bytes = i.state_bytes;
    info.sequence_bytes = i.sequence_bytes;
    info.layout.weight_slots = i.weight_slots;
    info.layout.perm_slots = i.perm_slots;
    info.layout.bias_slots = i.bias_slots;
    info.layout.max_tile = i.max_tile;
    info.layout.num_branches = i.num_branches;
    std::memcpy(info.layout.branches.data(), i.branches, sizeof i.branches);
    if (i.num_branches < 1 || i.num_branches > PlanLayout::kMaxBranches || i.max_tile < 1) {
      return absl::InternalError(absl::StrCat("the plug-in asks for ", i.num_branches,
                                              " branches and tiles of ", i.max_tile));
    }
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const override {
    SLUICE_RETURN_IF_ERROR(CheckAttentionInputs(traits_, plan.info().shape, in));
    for (const KvView* view : {&in.k, &in.v, &in.k_pre}) {
      if (InBlocks(view->dtype))
        return absl::UnimplementedError(absl::StrCat(
            "plug-ins of ABI 2.0 read f32, bf16, f16 and i8 keys, not ", DTypeName(view->dtype)));
    }
    const LentContext context(ctx);
    plan_codec::Offer(out);
    ErrorText e;
    const sluice_code code =
        t_->run(self_, static_cast<const PlanOf&>(plan).plan,
                reinterpret_cast<const sluice_attention_inputs*>(&in),
                reinterpret_cast<sluice_attention_state*>(&state), &context.c, out.record(), &e.c);
    if (code != 0) return e.Status(code);
    SLUICE_RETURN_IF_ERROR(plan_codec::Take(in, out));
    state.keys = in.kv_len();
    return absl::OkStatus();
  }

  absl::Status Observe(const Plan& plan, const AttentionFeedback& f,
                       RouterState& state) const override {
    if (t_->observe == nullptr) return absl::OkStatus();
    ErrorText e;
    return e.Status(t_->observe(self_, static_cast<const PlanOf&>(plan).plan,
                                reinterpret_cast<const sluice_attention_feedback*>(&f),
                                reinterpret_cast<sluice_attention_state*>(&state), &e.c));
  }

  void Truncate(const Plan& plan, RouterState& state, int64_t keys) const override {
    if (t_->truncate != nullptr) {
      t_->truncate(self_, static_cast<const PlanOf&>(plan).plan,
                   reinterpret_cast<sluice_attention_state*>(&state), keys);
    }
    state.keys = std::min(state.keys, keys);
  }

 private:
  using PlanOf = RemotePlan<AttentionRouter::Plan, AttentionPlanInfo, sluice_attention_router_v2>;
  const sluice_attention_router_v2* t_;
  void* self_;
  AttentionTraits traits_;
};

class RemoteAttentionFactory final : public Factory<AttentionRouter> {
 public:
  explicit RemoteAttentionFactory(const sluice_attention_router_v2* t)
      : t_(t), traits_(TraitsOf(*t)) {}
  const AttentionTraits& traits() const override { return traits_; }
  bool learned() const override { return (t_->traits->flags & SLUICE_NEEDS_WEIGHTS) != 0; }
  std::string Describe() const override {
    return t_->config_help != nullptr ? t_->config_help : "";
  }
  absl::StatusOr<WeightKeys> Weights(absl::Span<const KeyValue> kvs,
                                     const AttentionShape& s) const override {
    return DeclaredWeights(t_, kvs, ShapeOf(s));
  }
  absl::StatusOr<std::unique_ptr<const AttentionRouter>> Create(
      absl::Span<const KeyValue> kvs, const WeightSource* weights) const override {
    SLUICE_ASSIGN_OR_RETURN(void* self, CreateSelf(t_, kvs, weights));
    return std::make_unique<const RemoteAttentionRouter>(t_, self);
  }

 private:
  const sluice_attention_router_v2* t_;
  AttentionTraits traits_;
};

// A router behind void functions cannot say that it failed: an outcome that the plug-in fails on
// adds nothing, an epoch that it fails on leaves the state as it was.
class RemoteAgentRouter final : public AgentRouter {
 public:
  RemoteAgentRouter(const sluice_agent_router_v1* t, void* self) : t_(t), self_(self) {}
  ~RemoteAgentRouter() override { t_->destroy(self_); }
  absl::string_view name() const override { return t_->name; }
  absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(
      std::shared_ptr<const AgentGraph> g) const override {
    SLUICE_RETURN_IF_ERROR(ValidateGraph(*g));
    std::vector<const char*> tasks;
    for (const std::string& task : g->tasks) tasks.push_back(task.c_str());
    std::vector<int32_t> sizes;
    std::vector<sluice_agent> agents;
    for (const std::vector<Agent>& stage : g->stages) {
      sizes.push_back(static_cast<int32_t>(stage.size()));
      for (const Agent& a : stage)
        agents.push_back({sizeof(sluice_agent), a.id.c_str(), a.model.c_str(), a.role.c_str(),
                          a.ability.empty() ? nullptr : a.ability.data(), a.cost_usd, a.latency_s,
                          a.weight});
    }
    std::vector<const sluice_agent*> each;
    each.reserve(agents.size());
    for (const sluice_agent& a : agents) each.push_back(&a);
    const sluice_agent_graph graph{sizeof graph,
                                   tasks.data(),
                                   each.data(),
                                   sizes.data(),
                                   static_cast<int32_t>(tasks.size()),
                                   static_cast<int32_t>(sizes.size())};
    sluice_agent_info info{sizeof info, -1, -1};
    void* p = nullptr;
    ErrorText e;
    const sluice_code code = t_->make_plan(self_, &graph, &p, &info, &e.c);
    if (code != 0) return e.Status(code);
    auto plan = std::make_unique<PlanOf>(t_, p);
    constexpr int64_t kMost = int64_t{1} << 28;
    if (info.sums < 0 || info.sums > kMost || info.state < 0 || info.state > kMost)
      return absl::InternalError(absl::StrCat("the plug-in wants ", info.sums, " sums and ",
                                              info.state, " numbers of state"));
    plan->info_.sums = info.sums;
    plan->info_.state = info.state;
    plan->info_.graph = std::move(g);
    return plan;
  }
  void InitialState(const Plan& p, absl::Span<double> state) const override {
    ErrorText e;
    if (t_->initial_state(self_, Of(p).plan, state.data(), &e.c) != 0)
      std::fill(state.begin(), state.end(), 0.0);
  }
  absl::Status Run(const Plan& p, absl::Span<const double> state, const AgentRequest& q,
                   AgentDecision& d, AgentTrace* trace) const override {
    const AgentGraph& g = *p.info().graph;
    if (q.intent.size() != g.tasks.size())
      return absl::InvalidArgumentError(
          absl::StrCat(q.intent.size(), " intents for ", g.tasks.size(), " tasks"));
    if (!q.follow.empty() && q.follow.size() != g.stages.size())
      return absl::InvalidArgumentError(absl::StrCat(
          "follow has ", q.follow.size(), " agents, wanted one a stage = ", g.stages.size()));
    const sluice_agent_request ask{
        sizeof ask,
        q.id,
        q.intent.data(),
        q.features.data(),
        q.features.size(),
        q.blocked.empty() ? nullptr : reinterpret_cast<const uint8_t*>(q.blocked.data()),
        q.live.empty() ? nullptr : reinterpret_cast<const sluice_agent_live*>(q.live.data()),
        q.explore,
        q.follow.empty() ? nullptr : q.follow.data()};
    d.stages = g.num_stages();
    std::fill_n(d.path.begin(), d.stages, -1);
    sluice_agent_decision out{sizeof out, d.path.data(), nullptr, 0, 0, 0};
    if (trace != nullptr) {
      trace->resize(g.num_agents());
      out.trace = reinterpret_cast<sluice_agent_candidate*>(trace->data());
      out.trace_capacity = g.num_agents();
    }
    ErrorText e;
    const sluice_code code = t_->run(self_, Of(p).plan, state.data(), &ask, &out, &e.c);
    if (trace != nullptr) trace->resize(std::clamp<int64_t>(out.trace_size, 0, g.num_agents()));
    if (code != 0) return e.Status(code);
    int32_t first = 0;
    for (int s = 0; s < d.stages; ++s) {
      const int32_t a = d.path[s] - first;
      if (a < 0 || a >= g.stage_size(s))
        return absl::InternalError(
            absl::StrCat("the plug-in chose agent ", a, " of ", g.stage_size(s), " in stage ", s));
      first += g.stage_size(s);
    }
    // One that was built before there was a path to follow draws its own.
    if (!q.follow.empty() && !std::equal(q.follow.begin(), q.follow.end(), d.path.begin()))
      return absl::UnimplementedError(
          "the plug-in cannot say the probability of a given path: build it anew");
    const bool possible = out.propensity > 0 || (!q.follow.empty() && out.propensity == 0);
    if (!(possible && out.propensity <= 1 + 1e-9))
      return absl::InternalError(absl::StrCat("the plug-in's propensity is ", out.propensity));
    d.propensity = out.propensity;
    return absl::OkStatus();
  }
  void Observe(const Plan& p, const AgentOutcome& o, std::vector<SumDelta>& deltas) const override {
    const AgentGraph& g = *p.info().graph;
    if (o.intent.size() != g.tasks.size() || o.path.size() != g.stages.size()) return;
    // The C record has no agent that has left.
    if (std::any_of(o.path.begin(), o.path.end(), [](int32_t a) { return a < 0; })) return;
    const sluice_agent_outcome outcome{
        sizeof outcome,    o.id,          o.intent.data(), o.features.data(),
        o.features.size(), o.path.data(), o.propensity,    o.quality,
        o.cost_usd,        o.latency_s,   o.accepted,      0};
    struct To {
      std::vector<SumDelta>& deltas;
      int64_t sums;
      bool ok = true;
    } to{deltas, p.info().sums};
    const size_t before = deltas.size();
    ErrorText e;
    const sluice_code code = t_->observe(
        self_, Of(p).plan, &outcome,
        [](void* self, const sluice_sum_delta* d, size_t n) {
          To& into = *static_cast<To*>(self);
          for (size_t i = 0; i < n; ++i) {
            into.ok = into.ok && d[i].cell < static_cast<uint64_t>(into.sums);
            into.deltas.push_back({d[i].cell, d[i].add});
          }
        },
        &to, &e.c);
    if (code != 0 || !to.ok) deltas.resize(before);
  }
  void Fold(const Plan& p, absl::Span<const int64_t> sums,
            absl::Span<double> state) const override {
    std::vector<double> after(state.begin(), state.end());
    ErrorText e;
    if (t_->fold(self_, Of(p).plan, sums.data(), after.data(), &e.c) == 0)
      std::copy(after.begin(), after.end(), state.begin());
  }

 private:
  using PlanOf = RemotePlan<AgentRouter::Plan, AgentPlanInfo, sluice_agent_router_v1>;
  static const PlanOf& Of(const Plan& p) { return static_cast<const PlanOf&>(p); }
  const sluice_agent_router_v1* t_;
  void* self_;
};

template <class Base, class Remote, class Table>
class RemoteFactory final : public Factory<Base> {
 public:
  explicit RemoteFactory(const Table* t) : t_(t) {}
  absl::string_view name() const override { return t_->name; }
  std::string Describe() const override {
    return t_->config_help != nullptr ? t_->config_help : "";
  }
  bool learned() const override {
    if constexpr (std::is_same_v<Table, sluice_router_v1>) return t_->needs_weights != 0;
    if constexpr (std::is_same_v<Table, sluice_agent_router_v1>)
      return (t_->flags & SLUICE_NEEDS_WEIGHTS) != 0;
  }
  std::string FullBudget() const override { return ""; }
  absl::StatusOr<std::unique_ptr<const Base>> Create(absl::Span<const KeyValue> kvs,
                                                     const WeightSource* weights) const override {
    SLUICE_ASSIGN_OR_RETURN(void* self, CreateSelf(t_, kvs, weights));
    return std::make_unique<const Remote>(t_, self);
  }

 private:
  const Table* t_;
};

class RemoteRouterFactory final : public RouterFactory {
 public:
  explicit RemoteRouterFactory(const sluice_router_v1* t)
      : t_(t), traits_(route_codec::FromC(*t->traits)) {}
  const RouteTraits& traits() const override { return traits_; }
  std::string Describe() const override {
    return t_->config_help != nullptr ? t_->config_help : "";
  }
  absl::StatusOr<WeightKeys> Weights(absl::Span<const KeyValue> kvs,
                                     const RouteShape& s) const override {
    return DeclaredWeights(t_, kvs, route_codec::ToC(s));
  }
  absl::StatusOr<std::unique_ptr<const Router>> Create(absl::Span<const KeyValue> kvs,
                                                       const WeightSource* weights) const override {
    SLUICE_ASSIGN_OR_RETURN(void* self, CreateSelf(t_, kvs, weights));
    return std::make_unique<const RemoteRouter>(t_, self);
  }

 private:
  const sluice_router_v1* t_;
  RouteTraits traits_;
};

class RemotePruner final : public WeightPruner {
 public:
  RemotePruner(const sluice_pruner_v1* t, void* self)
      : t_(t), self_(self), traits_(pruner_codec::FromC(*t->traits)) {}
  ~RemotePruner() override { t_->destroy(self_); }
  const PrunerTraits& traits() const override { return traits_; }
  absl::StatusOr<Mask> Prune(const PruneInputs& in, const RunContext& ctx) const override {
    SLUICE_RETURN_IF_ERROR(CheckPrune(traits_, in));
    const LentContext context(ctx);
    const sluice_prune_inputs c = pruner_codec::ToC(in);
    Mask out(in.weights.rows, in.weights.cols, false);
    ErrorText e;
    const sluice_code code = t_->prune(self_, &c, &context.c, out.words().data(), &e.c);
    if (code != 0) return e.Status(code);
    const int64_t tail = out.cols() % 64;
    for (int64_t r = 0; tail != 0 && r < out.rows(); ++r) {
      const uint64_t last = out.words()[(r + 1) * out.words_per_row() - 1];
      if (last >> tail != 0)
        return absl::InternalError(absl::StrCat(traits_.name,
                                                ": the plug-in's mask has bits beyond "
                                                "column ",
                                                out.cols(), " in row ", r));
    }
    return out;
  }

 private:
  const sluice_pruner_v1* t_;
  void* self_;
  PrunerTraits traits_;
};
class RemotePrunerFactory final : public WeightPrunerFactory {
 public:
  explicit RemotePrunerFactory(const sluice_pruner_v1* t)
      : t_(t), traits_(pruner_codec::FromC(*t->traits)) {}
  const PrunerTraits& traits() const override { return traits_; }
  std::string Describe() const override {
    return t_->config_help != nullptr ? t_->config_help : "";
  }
  absl::StatusOr<std::unique_ptr<const WeightPruner>> Create(
      absl::Span<const KeyValue> kvs, const WeightSource* weights) const override {
    SLUICE_ASSIGN_OR_RETURN(void* self, CreateSelf(t_, kvs, weights));
    return std::make_unique<const RemotePruner>(t_, self);
  }

 private:
  const sluice_pruner_v1* t_;
  PrunerTraits traits_;
};

// Plug-ins whose record ends before them have none.
absl::Span<const sluice_pruner_v1* const> Pruners(const sluice_plugin_v1* p) {
  if (p->struct_size < offsetof(sluice_plugin_v1, pruners) + sizeof p->pruners) return {};
  return {p->pruners, p->num_pruners};
}
absl::Status CheckPruners(const sluice_plugin_v1* p) {
  const auto pruners = Pruners(p);
  if ((!pruners.empty() && pruners.data() == nullptr) || pruners.size() > 4096)
    return absl::InternalError("its tables are missing or too many");
  for (size_t i = 0; i < pruners.size(); ++i) {
    const sluice_pruner_v1* t = pruners[i];
    if (t == nullptr || t->struct_size < sizeof *t || t->traits == nullptr ||
        t->traits->struct_size < sizeof *t->traits || t->traits->name == nullptr ||
        !absl::StartsWith(t->traits->name, "weight/") || t->create == nullptr ||
        t->destroy == nullptr || t->prune == nullptr)
      return absl::InternalError(absl::StrCat("its pruner ", i, " is incomplete"));
  }
  return absl::OkStatus();
}

// Since 1.1.
absl::Span<const sluice_agent_router_v1* const> Agents(const sluice_plugin_v1* p) {
  if (p->struct_size < offsetof(sluice_plugin_v1, agents) + sizeof p->agents) return {};
  return {p->agents, p->num_agents};
}
template <class Table>
bool HasName(const Table* t) {
  return t->name != nullptr && *t->name != 0;
}
// "domain/method", of a domain that routers may have.
bool HasName(const sluice_router_v1* t) {
  const sluice_route_traits* traits = t->traits;
  if (traits == nullptr ||
      traits->struct_size < offsetof(sluice_route_traits, may_read) + sizeof(uint32_t) ||
      traits->name == nullptr ||
      traits->domain > static_cast<uint32_t>(Domain::kWeight))  // what Domain cannot hold
    return false;
  const char* domain = DomainName(static_cast<Domain>(traits->domain));
  return absl::StartsWith(traits->name, absl::StrCat(domain, "/"));
}
bool HasName(const sluice_attention_router_v2* t) {
  const sluice_attention_traits* traits = t->traits;
  return traits != nullptr && traits->struct_size >= sizeof(sluice_attention_traits) &&
         traits->name != nullptr && *traits->name != 0;
}

// Everything that must hold of what the entry point returned, before a field beyond struct_size is
// read.
absl::Status CheckTables(const sluice_plugin_v1* p) {
  if (p == nullptr)
    return absl::FailedPreconditionError(
        "its entry point returned nothing: it does not want this host");
  if (p->struct_size < offsetof(sluice_plugin_v1, attention) + sizeof p->attention)
    return absl::InternalError(
        absl::StrCat("its record has ", p->struct_size, " bytes, wanted at least ", sizeof *p));
  if (p->magic != SLUICE_PLUGIN_MAGIC)
    return absl::InternalError("its record has a wrong magic number");
  if (p->abi_major != SLUICE_ABI_MAJOR || p->min_host_minor > SLUICE_ABI_MINOR)
    return absl::FailedPreconditionError(absl::StrCat(
        "it wants a host of ABI ", p->abi_major, ".", p->min_host_minor,
        " or later of that major number, this is ", SLUICE_ABI_MAJOR, ".", SLUICE_ABI_MINOR));
  if (p->name == nullptr || p->version == nullptr)
    return absl::InternalError("it has no name or version");
  const absl::Span<const sluice_agent_router_v1* const> agents = Agents(p);
  if ((p->num_routers > 0 && p->routers == nullptr) ||
      (p->num_attention > 0 && p->attention == nullptr) ||
      (!agents.empty() && agents.data() == nullptr) || p->num_routers > 4096 ||
      p->num_attention > 4096 || agents.size() > 4096)
    return absl::InternalError("its tables are missing or too many");
  const auto complete = [](const auto* t, size_t bytes) -> bool {
    return t != nullptr && t->struct_size >= bytes && HasName(t) && t->create != nullptr &&
           t->destroy != nullptr && t->make_plan != nullptr && t->destroy_plan != nullptr &&
           t->run != nullptr;
  };
  for (size_t i = 0; i < p->num_routers; ++i) {
    const sluice_router_v1* r = p->routers[i];
    if (!complete(r, offsetof(sluice_router_v1, run_unit) + sizeof(void*)))
      return absl::InternalError(absl::StrCat("its router ", i, " is incomplete"));
    if ((r->traits->flags & SLUICE_ROUTE_LEARNED) != 0 && r->weights == nullptr)
      return absl::InternalError(
          absl::StrCat("its router ", r->traits->name, " is learned and declares no weights"));
    if (r->traits->combine > 3 || r->traits->decides > 2)
      return absl::InternalError(absl::StrCat("its router ", r->traits->name, " has combine ",
                                              r->traits->combine, " and decides ",
                                              r->traits->decides, ", allowed 0 to 3 and 0 to 2"));
  }
  for (size_t i = 0; i < p->num_attention; ++i) {
    const sluice_attention_router_v2* a = p->attention[i];
    const size_t least = offsetof(sluice_attention_router_v2, truncate) + sizeof(void*);
    if (!complete(a, least) || a->traits->stages < 1 || a->traits->stages > 8)
      return absl::InternalError(absl::StrCat("its attention router ", i, " is incomplete"));
    if ((a->traits->flags & SLUICE_NEEDS_WEIGHTS) != 0 && a->weights == nullptr)
      return absl::InternalError(absl::StrCat("its attention router ", a->traits->name,
                                              " is learned and declares no weights"));
  }
  for (size_t i = 0; i < agents.size(); ++i) {
    const sluice_agent_router_v1* a = agents[i];
    if (!complete(a, offsetof(sluice_agent_router_v1, fold) + sizeof(void*)) ||
        a->initial_state == nullptr || a->observe == nullptr || a->fold == nullptr)
      return absl::InternalError(absl::StrCat("its agent router ", i, " is incomplete"));
  }
  return CheckPruners(p);
}
absl::StatusOr<const sluice_plugin_v1*> Open(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr)
    return absl::FailedPreconditionError(absl::StrCat("it cannot be loaded: ", dlerror()));
  const auto entry =
      reinterpret_cast<sluice_plugin_entry_v1_fn>(dlsym(library, SLUICE_PLUGIN_ENTRY));
  if (entry == nullptr)
    return absl::InternalError(absl::StrCat("it exports no ", SLUICE_PLUGIN_ENTRY));
  const sluice_plugin_v1* p = entry(SLUICE_ABI_MAJOR, SLUICE_ABI_MINOR);
  SLUICE_RETURN_IF_ERROR(CheckTables(p));
  return p;
}
absl::Status Named(const std::string& path, const absl::Status& s) {
  return absl::Status(s.code(), absl::StrCat(path, ": ", s.message()));
}
std::vector<std::string> Methods(const sluice_plugin_v1* p) {
  std::vector<std::string> names;
  for (size_t i = 0; i < p->num_routers; ++i) names.push_back(p->routers[i]->traits->name);
  for (size_t i = 0; i < p->num_attention; ++i)
    names.push_back(absl::StrCat("attention/", p->attention[i]->traits->name));
  for (const sluice_agent_router_v1* a : Agents(p))
    names.push_back(absl::StrCat("agent/", a->name));
  for (const sluice_pruner_v1* t : Pruners(p)) names.push_back(t->traits->name);
  return names;
}

absl::StatusOr<PluginManifest> ParseManifest(absl::string_view text) {
  text = text.substr(0, text.find('\0'));
  PluginManifest m;
  const std::vector<absl::string_view> lines = absl::StrSplit(text, '\n');
  if (lines.empty() || lines[0] != "sluice-plugin 1")
    return absl::InvalidArgumentError("its manifest is of an unknown kind");
  bool abi = false;
  for (absl::string_view line : lines) {
    const std::pair<absl::string_view, absl::string_view> kv =
        absl::StrSplit(line, absl::MaxSplits('=', 1));
    if (kv.first == "name") m.name = std::string(kv.second);
    if (kv.first == "version") m.version = std::string(kv.second);
    if (kv.first == "min_host_minor" && !absl::SimpleAtoi(kv.second, &m.min_host_minor))
      return absl::InvalidArgumentError("its manifest has a min_host_minor that is no number");
    if (kv.first == "abi") {
      const std::pair<absl::string_view, absl::string_view> n =
          absl::StrSplit(kv.second, absl::MaxSplits('.', 1));
      abi = absl::SimpleAtoi(n.first, &m.abi_major) && absl::SimpleAtoi(n.second, &m.abi_minor);
    }
  }
  if (m.name.empty() || !abi)
    return absl::InvalidArgumentError("its manifest lacks a name or an ABI number");
  return m;
}
}  // namespace

absl::StatusOr<PluginManifest> ReadPluginManifest(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const int fd, OpenRegularFile(path));
  const absl::Cleanup close_file = [fd] { close(fd); };
  const auto read = [&](uint64_t at, void* to, size_t n) {
    return pread(fd, to, n, static_cast<off_t>(at)) == static_cast<ssize_t>(n);
  };
  const auto bad = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", why));
  };
  Elf64_Ehdr e;
  if (!read(0, &e, sizeof e) || std::memcmp(e.e_ident, ELFMAG, SELFMAG) != 0 ||
      e.e_ident[EI_CLASS] != ELFCLASS64)
    return bad("no 64-bit ELF file");
  if (e.e_shentsize != sizeof(Elf64_Shdr) || e.e_shnum == 0 || e.e_shstrndx >= e.e_shnum ||
      e.e_shoff > (uint64_t{1} << 40))
    return bad("its section table cannot be read");
  std::vector<Elf64_Shdr> sections(e.e_shnum);
  if (!read(e.e_shoff, sections.data(), sections.size() * sizeof(Elf64_Shdr)))
    return bad("its section table is cut short");
  const Elf64_Shdr& names = sections[e.e_shstrndx];
  if (names.sh_size > (1u << 20) || names.sh_offset > (uint64_t{1} << 40))
    return bad("its section names cannot be read");
  std::string text(names.sh_size, '\0');
  if (!read(names.sh_offset, text.data(), text.size()))
    return bad("its section names are cut short");
  for (const Elf64_Shdr& s : sections) {
    if (s.sh_name >= text.size() ||
        std::strcmp(text.c_str() + s.sh_name, SLUICE_MANIFEST_SECTION) != 0)
      continue;
    if (s.sh_size > 65536 || s.sh_offset > (uint64_t{1} << 40))
      return bad("its manifest is too long");
    std::string manifest(s.sh_size, '\0');
    if (!read(s.sh_offset, manifest.data(), manifest.size()))
      return bad("its manifest is cut short");
    auto m = ParseManifest(manifest);
    if (!m.ok()) return Named(path, m.status());
    return m;
  }
  return bad("no Sluice plug-in: it has no section " SLUICE_MANIFEST_SECTION);
}

absl::StatusOr<PluginInfo> CheckPlugin(const std::string& path, std::chrono::milliseconds limit) {
  PluginInfo info;
  SLUICE_ASSIGN_OR_RETURN(info.manifest, ReadPluginManifest(path));
  if (info.manifest.abi_major != SLUICE_ABI_MAJOR ||
      info.manifest.min_host_minor > SLUICE_ABI_MINOR)
    return absl::FailedPreconditionError(absl::StrCat(
        path, ": built for ABI ", info.manifest.abi_major, ".", info.manifest.abi_minor,
        ", wants a host of at least ", info.manifest.abi_major, ".", info.manifest.min_host_minor,
        "; this host is ", SLUICE_ABI_MAJOR, ".", SLUICE_ABI_MINOR));
  const auto methods = CheckInChild(
      [&]() -> absl::StatusOr<std::string> {
        SLUICE_ASSIGN_OR_RETURN(const sluice_plugin_v1* p, Open(path));
        return absl::StrJoin(Methods(p), "\n");
      },
      limit);
  if (!methods.ok()) return Named(path, methods.status());
  info.methods = absl::StrSplit(*methods, '\n', absl::SkipEmpty());
  return info;
}

absl::StatusOr<PluginInfo> LoadPlugin(const std::string& path, Registry& registry, bool isolated,
                                      std::chrono::milliseconds limit) {
  PluginInfo info;
  if (isolated) {
    SLUICE_ASSIGN_OR_RETURN(info, CheckPlugin(path, limit));
  } else {
    SLUICE_ASSIGN_OR_RETURN(info.manifest, ReadPluginManifest(path));
  }
  const auto opened = Open(path);
  if (!opened.ok()) return Named(path, opened.status());
  const sluice_plugin_v1* p = *opened;
  info.methods = Methods(p);
  // All or none.
  std::vector<std::unique_ptr<const RouterFactory>> routers;
  std::vector<std::unique_ptr<const Factory<AttentionRouter>>> attention;
  for (size_t i = 0; i < p->num_routers; ++i)
    routers.push_back(std::make_unique<const RemoteRouterFactory>(p->routers[i]));
  for (size_t i = 0; i < p->num_attention; ++i)
    attention.push_back(std::make_unique<const RemoteAttentionFactory>(p->attention[i]));
  std::vector<std::unique_ptr<const Factory<AgentRouter>>> agents;
  for (const sluice_agent_router_v1* a : Agents(p))
    agents.push_back(
        std::make_unique<
            const RemoteFactory<AgentRouter, RemoteAgentRouter, sluice_agent_router_v1>>(a));
  std::vector<std::unique_ptr<const WeightPrunerFactory>> pruners;
  for (const sluice_pruner_v1* t : Pruners(p))
    pruners.push_back(std::make_unique<const RemotePrunerFactory>(t));
  absl::Status status;
  const auto free = [&](const auto& made, const auto& map) {
    for (const auto& factory : made) {
      for (const auto& [name, known] : map) {
        if (factory->name() == name)
          status.Update(
              absl::AlreadyExistsError(absl::StrCat("'", name, "' is registered already")));
      }
    }
  };
  free(routers, registry.routers);
  free(attention, registry.attention);
  free(agents, registry.agents);
  free(pruners, registry.pruners);
  if (!status.ok()) return Named(path, status);
  for (auto& f : routers) status.Update(registry.routers.Add(std::move(f)));
  for (auto& f : attention) status.Update(registry.attention.Add(std::move(f)));
  for (auto& f : agents) status.Update(registry.agents.Add(std::move(f)));
  for (auto& f : pruners) status.Update(registry.pruners.Add(std::move(f)));
  if (!status.ok()) return Named(path, status);
  return info;
}

std::vector<std::string> PluginFolders() {
  std::vector<std::string> folders;
  if (const char* path = std::getenv("SLUICE_PLUGIN_PATH")) {
    for (absl::string_view f : absl::StrSplit(path, ':', absl::SkipEmpty()))
      folders.emplace_back(f);
  }
  folders.push_back(SLUICE_PLUGIN_FOLDER);
  return folders;
}
std::vector<PluginInfo> LoadPlugins(const std::vector<std::string>& folders, Registry& registry,
                                    std::vector<absl::Status>& refused,
                                    std::chrono::milliseconds limit) {
  std::vector<PluginInfo> loaded;
  for (const std::string& folder : folders) {
    std::vector<std::string> files;
    std::error_code error;
    for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end;
         it.increment(error)) {
      if (it->path().extension() == ".so") files.push_back(it->path().string());
    }
    std::sort(files.begin(), files.end());
    for (const std::string& file : files) {
      auto info = LoadPlugin(file, registry, /*isolated=*/true, limit);
      if (info.ok())
        loaded.push_back(*std::move(info));
      else
        refused.push_back(info.status());
    }
  }
  return loaded;
}
SLUICE_END_NAMESPACE
