#ifndef SLUICE_API_AGENT_ROUTER_H_
#define SLUICE_API_AGENT_ROUTER_H_
// Agent routers: one agent a stage for each query. Plan, then run: MakePlan may fail and allocate;
// Run is const and never allocates (on success), locks or logs.
//
// Learning is a sum. Observe turns one outcome into increments of integers and reads nothing but
// that outcome; Fold turns the sums of one epoch into the doubles that Run reads. So the state is a
// function of the set of outcomes: their order, duplicates that are dropped by id, crashes and the
// number of replicas cannot change one bit of it.
#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "sluice/api/check.h"
#include "sluice/api/config.h"
#include "sluice/api/version.h"
#include "sluice/api/weight_source.h"

SLUICE_BEGIN_NAMESPACE
inline constexpr int kMaxStages = 8;
inline constexpr int kMaxStageAgents = 1024;
inline constexpr int kMaxTasks = 256;
// Of a plan's sums, and of its state: what is larger would not fit a machine's memory a few times.
inline constexpr int64_t kMaxPlanNumbers = int64_t{1} << 28;

// A backbone model in a role. What is not known is left at its default.
struct Agent {
  std::string id, model, role;
  std::vector<double>
      ability;           // per task in [0, 1]: prior share of queries it answers well; empty: 0.5
  double cost_usd = 0;   // prior mean of one call
  double latency_s = 0;  // prior mean of one call
  double weight = 1;     // for weighted choice
};

// Stages of agents; a path takes one agent of each. Agents are numbered through all stages, edges
// too: edge (i, j) of stage s goes from agent i of stage s - 1 (a virtual source for s = 0) to
// agent j of stage s.
struct AgentGraph {
  std::vector<std::string> tasks;
  std::vector<std::vector<Agent>> stages;

  int64_t num_tasks() const { return static_cast<int64_t>(tasks.size()); }
  int num_stages() const { return static_cast<int>(stages.size()); }
  int stage_size(int s) const { return static_cast<int>(stages[s].size()); }
  int rows(int s) const { return s == 0 ? 1 : stage_size(s - 1); }
  int64_t first_agent(int s) const {
    int64_t n = 0;
    for (int k = 0; k < s; ++k) n += stage_size(k);
    return n;
  }
  int64_t num_agents() const { return first_agent(num_stages()); }
  int64_t first_edge(int s) const {
    int64_t n = 0;
    for (int k = 0; k < s; ++k) n += int64_t{rows(k)} * stage_size(k);
    return n;
  }
  int64_t num_edges() const { return first_edge(num_stages()); }
  const Agent& agent(int64_t a) const {
    for (const auto& stage : stages) {
      if (a < static_cast<int64_t>(stage.size())) return stage[a];
      a -= static_cast<int64_t>(stage.size());
    }
    return stages.back().back();
  }
};

inline absl::Status ValidateGraph(const AgentGraph& g) {
  if (g.tasks.empty() || g.tasks.size() > kMaxTasks) {
    return absl::InvalidArgumentError(
        absl::StrCat("agent graph: ", g.tasks.size(), " tasks, allowed 1 to ", kMaxTasks));
  }
  if (g.stages.empty() || g.stages.size() > kMaxStages) {
    return absl::InvalidArgumentError(
        absl::StrCat("agent graph: ", g.stages.size(), " stages, allowed 1 to ", kMaxStages));
  }
  std::vector<absl::string_view> ids;
  for (size_t s = 0; s < g.stages.size(); ++s) {
    if (g.stages[s].empty() || g.stages[s].size() > kMaxStageAgents) {
      return absl::InvalidArgumentError(absl::StrCat("agent graph: stage ", s, " has ",
                                                     g.stages[s].size(), " agents, allowed 1 to ",
                                                     kMaxStageAgents));
    }
    for (const Agent& a : g.stages[s]) {
      if (a.id.empty())
        return absl::InvalidArgumentError(
            absl::StrCat("agent graph: an agent of stage ", s, " has no id"));
      if (!a.ability.empty() && a.ability.size() != g.tasks.size()) {
        return absl::InvalidArgumentError(
            absl::StrCat("agent '", a.id, "': ", a.ability.size(),
                         " abilities, wanted one a task = ", g.tasks.size(), ", or none"));
      }
      for (double x : a.ability) {
        if (!(x >= 0 && x <= 1)) {
          return absl::OutOfRangeError(
              absl::StrCat("agent '", a.id, "': ability ", x, " is outside [0, 1]"));
        }
      }
      for (double x : {a.cost_usd, a.latency_s, a.weight}) {
        if (!(x >= 0 && x <= 1e9)) {
          return absl::OutOfRangeError(absl::StrCat(
              "agent '", a.id, "': cost, latency and weight must be in [0, 1e9], got ", x));
        }
      }
      ids.push_back(a.id);
    }
  }
  std::sort(ids.begin(), ids.end());
  if (auto twice = std::adjacent_find(ids.begin(), ids.end()); twice != ids.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("agent graph: two agents are called '", *twice, "'"));
  }
  for (size_t i = 0; i < g.tasks.size(); ++i) {
    if (g.tasks[i].empty()) return absl::InvalidArgumentError("agent graph: a task has no name");
    for (size_t j = 0; j < i; ++j) {
      if (g.tasks[i] == g.tasks[j]) {
        return absl::InvalidArgumentError(
            absl::StrCat("agent graph: two tasks are called '", g.tasks[i], "'"));
      }
    }
  }
  return absl::OkStatus();
}

// Why an agent may not be chosen.
enum class Block : uint8_t { kNone, kUnhealthy, kOverBudget, kCapability, kCaller };

struct AgentLive {
  double load = 0;       // requests in flight, smoothed
  double latency_s = 0;  // smoothed; 0: not measured, the prior counts
};

// What a router may know of one query. Spans are borrowed for the call.
struct AgentRequest {
  uint64_t id = 0;                   // keys every random draw
  absl::Span<const double> intent;   // [tasks], not negative, sums to 1
  absl::Span<const float> features;  // [width], or empty
  absl::Span<const Block> blocked;   // [agents], or empty: nobody is
  absl::Span<const AgentLive> live;  // [agents], or empty: priors
  // Share of the draw that is spread evenly over the candidates that are not blocked, [0, 1]. Above
  // 0 every admissible path has a propensity, so other policies can be judged by what this one did.
  double explore = 0;
  // A path whose probability is asked: its agents are taken instead of drawn ones, one a stage, and
  // the decision's propensity is theirs, 0 where it cannot be drawn. Empty: the router draws.
  absl::Span<const int32_t> follow;
};

struct AgentDecision {
  int stages = 0;
  std::array<int32_t, kMaxStages> path{};  // agent numbers
  double propensity = 1;                   // probability of this path, given the state
};

// One candidate of one stage, as it was weighed.
struct AgentCandidate {
  int32_t stage = 0, agent = 0;
  Block block = Block::kNone;
  bool chosen = false;
  float tau = 0, eta = 0, p = 0;  // pheromone (or learned score), heuristic (or prior), probability
};
using AgentTrace = std::vector<AgentCandidate>;

struct AgentOutcome {
  uint64_t id = 0;
  absl::Span<const double> intent;   // as in the request
  absl::Span<const float> features;  // as in the request
  // Agent numbers, one a stage; -1: an agent that has left the team. What is kept of it alone, and
  // of edges that it is an end of, is left out.
  absl::Span<const int32_t> path;
  double propensity = 1;
  double quality = 0;                  // [0, 1]
  bool accepted = false;               // the gate's verdict
  double cost_usd = 0, latency_s = 0;  // of the whole path
  // The path's calls' own, [stages], or empty: equal shares.
  absl::Span<const double> stage_cost_usd;
  absl::Span<const double> stage_latency_s;
};

// Sums are integers of 2^-32: adding them is exact and commutes.
inline constexpr double kSumUnit = 1.0 / 4294967296.0;
struct SumDelta {
  uint32_t cell = 0;
  int64_t add = 0;
};
// |v| is cut at 1024, so that two million outcomes an epoch cannot overflow a cell. NaN counts as
// 0.
inline int64_t ToSum(double v) {
  if (!(v == v)) return 0;
  return std::llround(std::clamp(v, -1024.0, 1024.0) / kSumUnit);
}
inline double FromSum(int64_t v) { return static_cast<double>(v) * kSumUnit; }

struct AgentPlanInfo {
  std::shared_ptr<const AgentGraph> graph;
  int64_t sums = 0;   // cells of an epoch
  int64_t state = 0;  // doubles that Run reads
};

template <class R>
concept AgentRouterModel =
    (LearnedModel<R> || MadeFromConfig<R>)&&std::default_initializable<typename R::Config> &&
    std::derived_from<typename R::Plan, AgentPlanInfo> &&
    requires(const R& r, const typename R::Plan& p, std::shared_ptr<const AgentGraph> g,
             const AgentRequest& q, const AgentOutcome& o, absl::Span<const double> state,
             absl::Span<const int64_t> sums, absl::Span<double> out, std::vector<SumDelta>& deltas,
             AgentDecision& d, AgentTrace* t) {
      { R::kName } -> std::convertible_to<absl::string_view>;
      { r.MakePlan(g) } -> std::same_as<absl::StatusOr<typename R::Plan>>;
      { r.InitialState(p, out) };
      { r.Run(p, state, q, d, t) } -> std::same_as<absl::Status>;
      { r.Observe(p, o, deltas) };
      { r.Fold(p, sums, out) };
    };

// What a host holds.
class AgentRouter {
 public:
  class Plan {
   public:
    virtual ~Plan() = default;
    virtual const AgentPlanInfo& info() const = 0;
  };
  virtual ~AgentRouter() = default;
  virtual absl::string_view name() const = 0;
  virtual absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(
      std::shared_ptr<const AgentGraph>) const = 0;
  virtual void InitialState(const Plan&, absl::Span<double> state) const = 0;
  // A path and its propensity. `trace` (optional) gets every candidate of every stage: a stage's
  // probabilities depend on the agent of the stage before, and on no other of the path. An error
  // when a stage has no agent that is not blocked.
  virtual absl::Status Run(const Plan&, absl::Span<const double> state, const AgentRequest&,
                           AgentDecision&, AgentTrace* trace) const = 0;
  // Appends what the outcome adds to its epoch.
  virtual void Observe(const Plan&, const AgentOutcome&, std::vector<SumDelta>&) const = 0;
  // State before an epoch -> state after it.
  virtual void Fold(const Plan&, absl::Span<const int64_t> sums,
                    absl::Span<double> state) const = 0;
};

template <AgentRouterModel R>
class AgentRouterOf final : public AgentRouter {
 public:
  explicit AgentRouterOf(R r) : r_(std::move(r)) {}
  absl::string_view name() const override { return R::kName; }
  absl::StatusOr<std::unique_ptr<const Plan>> MakePlan(
      std::shared_ptr<const AgentGraph> g) const override {
    SLUICE_RETURN_IF_ERROR(ValidateGraph(*g));
    SLUICE_ASSIGN_OR_RETURN(auto plan, r_.MakePlan(std::move(g)));
    if (plan.sums > kMaxPlanNumbers || plan.state > kMaxPlanNumbers)
      return absl::ResourceExhaustedError(
          absl::StrCat(name(), ": this graph takes ", plan.sums, " sums and ", plan.state,
                       " numbers of state, allowed ", kMaxPlanNumbers, " of each"));
    return std::make_unique<const PlanOf>(std::move(plan));
  }
  void InitialState(const Plan& p, absl::Span<double> state) const override {
    r_.InitialState(Of(p), state);
  }
  absl::Status Run(const Plan& p, absl::Span<const double> state, const AgentRequest& q,
                   AgentDecision& d, AgentTrace* trace) const override {
    return r_.Run(Of(p), state, q, d, trace);
  }
  void Observe(const Plan& p, const AgentOutcome& o, std::vector<SumDelta>& deltas) const override {
    r_.Observe(Of(p), o, deltas);
  }
  void Fold(const Plan& p, absl::Span<const int64_t> sums,
            absl::Span<double> state) const override {
    r_.Fold(Of(p), sums, state);
  }

 private:
  struct PlanOf final : Plan {
    explicit PlanOf(typename R::Plan p) : plan(std::move(p)) {}
    const AgentPlanInfo& info() const override { return plan; }
    typename R::Plan plan;
  };
  static const typename R::Plan& Of(const Plan& p) { return static_cast<const PlanOf&>(p).plan; }
  R r_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_AGENT_ROUTER_H_
