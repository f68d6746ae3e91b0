#include "sluice/runtime/service/views.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/base/hash.h"
#include "sluice/runtime/service/answer.h"

SLUICE_BEGIN_NAMESPACE
namespace views {
namespace {
constexpr size_t kMostPaths = 12;

const char* NameOf(Block b) {
  switch (b) {
    case Block::kNone:
      return "";
    case Block::kUnhealthy:
      return "breaker open";
    case Block::kOverBudget:
      return "over budget";
    case Block::kCapability:
      return "above the query's cost limit";
    case Block::kCaller:
      return "excluded by the caller";
  }
  return "";
}
const char* NameOf(AgentHealth::Breaker b) {
  switch (b) {
    case AgentHealth::Breaker::kClosed:
      return "closed";
    case AgentHealth::Breaker::kOpen:
      return "open";
    case AgentHealth::Breaker::kHalfOpen:
      return "half-open";
  }
  return "";
}
using BarredAgents = std::vector<std::pair<int32_t, Barred>>;  // by number, ascending
void AddStages(const AgentGraph& g, const AgentTrace& trace, const BarredAgents& barred,
               google::protobuf::RepeatedPtrField<v1::StageExplanation>* out) {
  for (const AgentCandidate& c : trace) {
    while (out->size() <= c.stage) out->Add();
    v1::Candidate& to = *out->Mutable(c.stage)->add_candidates();
    to.set_agent(g.agent(c.agent).id);
    to.set_tau(c.tau);
    to.set_eta(c.eta);
    to.set_p(c.p);
    to.set_blocked(NameOf(c.block));
    to.set_chosen(c.chosen);
    const auto at = std::lower_bound(barred.begin(), barred.end(), c.agent,
                                     [](const auto& b, int32_t agent) { return b.first < agent; });
    if (at == barred.end() || at->first != c.agent) continue;
    to.set_why(at->second.why);
    to.set_free_in_s(at->second.free_in_s);
  }
}
uint64_t DigestOf(const std::vector<double>& numbers) {
  return HashText({reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(double)});
}
}  // namespace

void Explain(const Decisions& decisions, uint64_t id, v1::Response& r) {
  const Explained* e = decisions.Find(id);
  if (e == nullptr)
    return SetError(r.mutable_error(), v1::NOT_FOUND,
                    absl::StrCat("decision ", id, " is not among the last ", decisions.explained(),
                                 " of this server"));
  const PolicySet& set = *e->policies;
  const PolicySet::Policy& policy = set.policies[static_cast<size_t>(e->policy)];
  v1::ExplainResponse& out = *r.mutable_explain();
  out.set_decision_id(e->id);
  out.set_policy(policy.name);
  out.set_spec(e->kept ? "kept: the session's agents, by expected utility" : policy.spec);
  out.set_snapshot(e->snapshot);
  out.set_propensity(e->propensity);
  out.set_unix_ms(e->unix_ms);
  for (size_t t = 0; t < e->intent.size(); ++t) {
    v1::TaskWeight& w = *out.add_intent();
    w.set_task(set.graph->tasks[t]);
    w.set_weight(e->intent[t]);
  }
  AddStages(*set.graph, e->trace, e->barred, out.mutable_stages());
}

void Counters(const Tally& tally, v1::StatsResponse& s) {
  s.set_decisions(tally.decisions);
  s.set_feedbacks(tally.feedbacks);
  s.set_duplicates(tally.duplicates);
  s.set_rejected(tally.rejected);
  s.set_malformed(tally.malformed);
  s.set_overloaded(tally.overloaded);
  s.set_rate_limited(tally.rate_limited);
  s.set_undeliverable(tally.undeliverable);
  s.set_refused(tally.refused);
  s.set_reloads(tally.reloads);
  s.set_failed_reloads(tally.failed_reloads);
  s.set_decide_p50_us(tally.decide.Quantile(0.5) / 1e3);
  s.set_decide_p99_us(tally.decide.Quantile(0.99) / 1e3);
  if (tally.graded > 0) s.set_mean_quality(tally.quality / static_cast<double>(tally.graded));
  if (tally.settled > 0) s.set_mean_cost_usd(tally.cost_usd / static_cast<double>(tally.settled));
}

void Agents(const Team& team, v1::StatsResponse& s) {
  const AgentGraph& g = team.graph();
  for (int64_t a = 0; a < g.num_agents(); ++a) {
    const auto i = static_cast<size_t>(a);
    const AgentHealth::State& h = team.health().state(i);
    v1::AgentStats& to = *s.add_agents();
    to.set_agent(g.agent(a).id);
    to.set_chosen(h.chosen);
    to.set_failures(h.failures);
    to.set_in_flight(team.health().live()[i].load);
    to.set_latency_s(team.health().live()[i].latency_s);
    to.set_quality(h.graded > 0 ? h.quality / static_cast<double>(h.graded) : 0);
    to.set_cost_usd(h.cost_usd);
    to.set_over_budget(team.blocked()[i] == Block::kOverBudget);
    to.set_breaker(NameOf(h.breaker));
    if (h.breaker == AgentHealth::Breaker::kClosed) continue;
    to.set_breaker_why(h.why);
    to.set_breaker_ends_in_s(
        team.WhyBarred(static_cast<int32_t>(a), Block::kUnhealthy, {}).free_in_s);
  }
}

void Budgets(const Team& team, v1::StatsResponse& s) {
  const std::vector<BudgetRule>& rules = team.settings().budgets;
  const int64_t now = team.now().unix_ms;
  for (size_t r = 0; r < rules.size(); ++r) {
    v1::BudgetStats& b = *s.add_budgets();
    b.set_name(rules[r].name);
    b.set_limit_usd(Usd(rules[r].limit));
    b.set_spent_usd(Usd(team.spent(r)));
    b.set_reserved_usd(Usd(team.held(r)));
    b.set_period(std::string(sluice::NameOf(rules[r].per)));
    b.set_ends_in_s(static_cast<double>(EndOfPeriodMs(rules[r].per, now) - now) / 1e3);
  }
}

void Paths(const Decisions& decisions, v1::StatsResponse& s) {
  using Path = Decisions::Path;
  std::vector<const Path*> top;
  for (const auto& [key, path] : decisions.paths()) top.push_back(&path);
  std::sort(top.begin(), top.end(), [](const Path* a, const Path* b) {
    return a->chosen != b->chosen ? a->chosen > b->chosen : a->agents < b->agents;
  });
  for (size_t i = 0; i < std::min(kMostPaths, top.size()); ++i) {
    v1::PathStats& p = *s.add_paths();
    for (const std::string& id : top[i]->agents) p.add_agents(id);
    p.set_chosen(top[i]->chosen);
  }
}

void Policies(const LearnedState& state, int active, v1::ListPoliciesResponse& out) {
  for (size_t i = 0; i < state.of.size(); ++i) {
    v1::PolicyInfo& p = *out.add_policies();
    p.set_name(state.policies->policies[i].name);
    p.set_spec(state.policies->policies[i].spec);
    p.set_active(static_cast<int>(i) == active);
    p.set_outcomes(static_cast<uint64_t>(state.of[i].outcomes));
    p.set_late(static_cast<uint64_t>(state.of[i].late));
  }
}

void Snapshot(const LearnedState& state, bool include_state, v1::SnapshotResponse& out) {
  out.set_sequence(state.sequence);
  for (size_t i = 0; i < state.of.size(); ++i) {
    const LearnedState::Of& of = state.of[i];
    v1::PolicySnapshot& p = *out.add_policies();
    p.set_name(state.policies->policies[i].name);
    p.set_outcomes(static_cast<uint64_t>(of.outcomes));
    p.set_digest(DigestOf(of.state));
    p.set_late(static_cast<uint64_t>(of.late));
    if (include_state) p.mutable_state()->Add(of.state.begin(), of.state.end());
  }
}

void HeatMap(const LearnedState& state, int active, const Team& team, v1::HeatMapResponse& out) {
  const PolicySet& set = *state.policies;
  const auto i = static_cast<size_t>(active);
  const PolicySet::Policy& policy = set.policies[i];
  out.set_policy(policy.name);
  for (size_t t = 0; t < set.graph->tasks.size(); ++t) {
    std::vector<double> intent(set.graph->tasks.size(), 0.0);
    intent[t] = 1;
    AgentRequest ask;
    ask.id = t + 1;
    ask.intent = intent;
    ask.live = team.health().live();
    ask.explore = team.settings().config.learning().explore();
    AgentDecision decision;
    AgentTrace trace;
    v1::TaskHeat& heat = *out.add_tasks();
    heat.set_task(set.graph->tasks[t]);
    if (policy.router->Run(*policy.plan, state.of[i].state, ask, decision, &trace).ok())
      AddStages(*set.graph, trace, {}, heat.mutable_stages());
  }
}

void History(const Tally& tally, v1::HistoryResponse& out) {
  for (const Tally::Second& s : tally.history) {
    v1::HistoryPoint& p = *out.add_points();
    p.set_unix_ms(s.unix_ms);
    p.set_decisions(s.decisions);
    p.set_feedbacks(s.feedbacks);
    const double graded = std::max<uint32_t>(1, s.graded);
    const double settled = std::max<uint32_t>(1, s.settled);
    p.set_quality(s.quality / graded);
    p.set_cost_usd(s.cost_usd / settled);
    p.set_latency_s(s.latency_s / settled);
  }
}
}  // namespace views
SLUICE_END_NAMESPACE
