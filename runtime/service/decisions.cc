#include "sluice/runtime/service/decisions.h"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "sluice/api/check.h"
#include "sluice/runtime/base/hash.h"
#include "sluice/runtime/service/affinity.h"
#include "sluice/runtime/service/answer.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr size_t kMaxPaths = 4096;
constexpr int kMaxFeatures = 1024;
constexpr int kMaxTags = 16;
}  // namespace

void Decisions::Adopt(const ServerSettings& settings, const std::string& active) {
  const v1::ServerConfig& config = settings.config;
  if (graph_ != settings.policies->fingerprint) paths_.clear();
  graph_ = settings.policies->fingerprint;
  active_ = active;
  experiment_.Adopt(config.experiment());
  explained_.resize(config.limits().explained_decisions());
  sessions_.SetMost(config.has_affinity() ? config.affinity().sessions() : 0);
  epochs_.Set(0, config.learning().epoch_decisions());
}

int Decisions::ActiveIn(const PolicySet& set) const { return std::max(0, set.Find(active_)); }

bool Decisions::Made(uint64_t id) const {
  return std::any_of(leases_.begin(), leases_.end(),
                     [id](uint64_t first) { return id >= first && id < first + Learner::kLease; });
}

const Explained* Decisions::Find(uint64_t id) const {
  const Explained& e = Slot(id);
  return id != 0 && e.id == id ? &e : nullptr;
}

uint64_t Decisions::NextId() {
  if (ids_left_ == 0) {
    uint64_t lease = learner_.TakeLease();
    if (lease == 0) {  // the learner is behind: ask ourselves
      const absl::StatusOr<uint64_t> asked = store_.LeaseIds(Learner::kLease);
      if (!asked.ok()) return 0;
      lease = *asked;
    }
    next_id_ = lease;
    ids_left_ = Learner::kLease;
    leases_.push_back(lease);
  }
  --ids_left_;
  return next_id_++;
}

void Decisions::Decide(const Queries& queries, const std::string& caller, Team& team,
                       const LearnedState& state, Answers& out) {
  auto before = std::chrono::steady_clock::now();
  for (const v1::Query& q : queries) {
    const bool decided = DecideOne(q, caller, team, state, out);
    const auto now =
        std::chrono::steady_clock::now();  // the end of one is the beginning of the next
    const auto took = std::chrono::duration_cast<std::chrono::nanoseconds>(now - before);
    if (decided) tally_.decide.Add(took.count());
    before = now;
  }
}

// What is remembered of decisions is more than caches hold, and where the next one goes is known.
void Decisions::FetchSlotsAfter(uint64_t id) const {
  constexpr size_t kLine = 64;
  constexpr size_t kMost = 32;  // the rest of a large team's is in a row: that is seen by itself
  const auto fetch = [](const void* from, size_t bytes) {
    const auto* at = static_cast<const char*>(from);
    for (size_t i = 0; i < std::min(bytes, kMost * kLine); i += kLine)
      __builtin_prefetch(at + i, 1);
  };
  const AgentTrace& trace = Slot(id + 1).trace;
  fetch(trace.data(), trace.capacity() * sizeof trace[0]);
  fetch(&Slot(id + 2), sizeof(Explained));
}

bool Decisions::DecideOne(const v1::Query& q, const std::string& caller, Team& team,
                          const LearnedState& state, Answers& out) {
  const uint64_t id = NextId();
  FetchSlotsAfter(id);
  absl::Status status =
      id == 0 ? absl::UnavailableError("the store leases no ids") : Understand(q, team);
  if (status.ok()) {
    FindPayers(q, caller, team);
    status = Bar(q, team);
  }
  if (status.ok()) status = Choose(q, team, state, id, out);
  if (status.ok()) return true;
  v1::Decision refused;
  SetError(refused.mutable_error(), status);
  if (status.code() == absl::StatusCode::kUnavailable)
    refused.mutable_error()->set_retry_after_s(RetryAfter(team));
  out.Add(refused);
  return false;
}

absl::Status Decisions::InferIntent(const v1::Query& q, const ServerSettings& settings,
                                    std::vector<double>& intent) const {
  const std::vector<std::string>& tasks = settings.policies->graph->tasks;
  intent.assign(tasks.size(), 0.0);
  if (!q.task().empty()) {
    const auto at = std::find(tasks.begin(), tasks.end(), q.task());
    if (at == tasks.end())
      return absl::InvalidArgumentError(
          absl::StrCat("no task '", q.task(), "'; known: ", absl::StrJoin(tasks, ", ")));
    intent[static_cast<size_t>(at - tasks.begin())] = 1;
    return absl::OkStatus();
  }
  if (!q.intent().empty()) {
    intent.assign(q.intent().begin(), q.intent().end());
    return absl::OkStatus();
  }
  if (!q.text().empty()) {
    if (settings.intent == nullptr)
      return absl::FailedPreconditionError(
          "the query has a text, but the server has no intent model (intent { model: })");
    return settings.intent->Infer(q.text(), absl::MakeSpan(intent));
  }
  intent.assign(tasks.size(), 1.0 / static_cast<double>(tasks.size()));
  return absl::OkStatus();
}

absl::Status Decisions::Understand(const v1::Query& q, const Team& team) {
  SLUICE_RETURN_IF_ERROR(InferIntent(q, team.settings(), intent_));
  if (!(q.max_cost_usd() >= 0) || std::isinf(q.max_cost_usd()))
    return absl::InvalidArgumentError(absl::StrCat(
        "max_cost_usd: ", q.max_cost_usd(), "; allowed: 0 (no limit) or a finite sum above it"));
  if (q.features_size() > kMaxFeatures)
    return absl::InvalidArgumentError(
        absl::StrCat(q.features_size(), " features, allowed ", kMaxFeatures));
  for (float x : q.features()) {
    if (!std::isfinite(x))
      return absl::InvalidArgumentError(absl::StrCat("features: ", x, " is no finite number"));
  }
  previous_.reset();
  if (!q.previous().empty()) {
    absl::StatusOr<DecisionRecord> previous = receipts_.Open(q.previous());
    if (!previous.ok())
      return absl::InvalidArgumentError(absl::StrCat("previous: ", previous.status().message()));
    previous_ = Sessions::Last{previous->graph, std::move(previous->path)};
  }
  if (q.tag_size() > kMaxTags)
    return absl::InvalidArgumentError(absl::StrCat(q.tag_size(), " tags, allowed ", kMaxTags));
  return absl::OkStatus();
}

void Decisions::FindPayers(const v1::Query& q, const std::string& caller, const Team& team) {
  record_.payers.clear();
  if (!caller.empty()) record_.payers.push_back(PayerHash(Payer::kKey, caller));
  for (const std::string& tag : q.tag()) {
    const uint64_t payer = PayerHash(Payer::kTag, tag);
    if (std::find(record_.payers.begin(), record_.payers.end(), payer) == record_.payers.end())
      record_.payers.push_back(payer);
  }
  rules_ = team.RulesOf(record_.payers);
}

absl::Status Decisions::Bar(const v1::Query& q, const Team& team) {
  blocked_.clear();
  if (!team.any_blocked() && q.exclude().empty() && q.max_cost_usd() == 0 && rules_.empty())
    return absl::OkStatus();
  blocked_.assign(team.blocked().begin(), team.blocked().end());
  for (const std::string& id : q.exclude()) {
    const std::optional<int32_t> agent = team.Find(id);
    if (!agent) return absl::InvalidArgumentError(absl::StrCat("exclude: no agent '", id, "'"));
    blocked_[static_cast<size_t>(*agent)] = Block::kCaller;
  }
  if (q.max_cost_usd() > 0) {
    size_t a = 0;
    for (const std::vector<Agent>& stage : team.graph().stages) {
      for (const Agent& agent : stage) {
        if (agent.cost_usd > q.max_cost_usd()) blocked_[a] = Block::kCapability;
        ++a;
      }
    }
  }
  team.BarByBudget(rules_, blocked_);
  return absl::OkStatus();
}

absl::Status Decisions::Choose(const v1::Query& q, Team& team, const LearnedState& state,
                               uint64_t id, Answers& out) {
  const int active = PolicyFor(q, state);
  const PolicySet::Policy& policy = state.policies->policies[static_cast<size_t>(active)];
  Explained& slot = explained_[id % explained_.size()];
  slot.id = 0;
  slot.trace.clear();
  AgentDecision d;
  slot.kept = Keep(q, team, state, id, d, slot.trace);
  if (!slot.kept)
    SLUICE_RETURN_IF_ERROR(
        Run(q, team, policy, state.of[static_cast<size_t>(active)].state, id, d, slot.trace));
  record_.id = id;
  record_.kept = slot.kept;
  Note(q, team, state, active, d, slot);
  Tell(team, policy, d, slot.trace, out);
  team.Chosen(record_);
  if (!q.session().empty() && state.policies->worth)
    sessions_.Remember(q.session(), record_.graph, record_.path);
  ++tally_.decisions;
  ++tally_.now.decisions;
  CountPath(d, team.graph());
  if (!experiment_.shadows().empty())
    shadowed_.push_back({id, intent_, blocked_, record_.features, d});
  epochs_.Decided();
  return absl::OkStatus();
}

// The policy of the experiment's arm that the query's unit is in, or everyone's. Notes unit and arm
// in the record.
int Decisions::PolicyFor(const v1::Query& q, const LearnedState& state) {
  const int everyone = ActiveIn(*state.policies);
  record_.unit = q.unit().empty() ? 0 : std::max<uint64_t>(1, HashText(q.unit()));
  record_.experiment = 0;
  record_.arm = 0;
  const bool known = experiment_.id() == state.experiment;  // not so just after a reload
  if (!experiment_.running() || q.unit().empty() || !known) return everyone;
  const Experiment::Assigned to = experiment_.Assign(q.unit(), state.stopped);
  const int index = state.policies->Find(*to.policy);
  if (index < 0) return everyone;
  if (to.counts) {
    record_.experiment = experiment_.id();
    record_.arm = static_cast<uint8_t>(to.arm);
  }
  return index;
}

absl::Status Decisions::Run(const v1::Query& q, const Team& team, const PolicySet::Policy& policy,
                            absl::Span<const double> state, uint64_t id, AgentDecision& d,
                            AgentTrace& trace) {
  AgentRequest ask;
  ask.id = id;
  ask.intent = intent_;
  ask.live = team.health().live();
  ask.features = absl::MakeConstSpan(q.features().data(), static_cast<size_t>(q.features_size()));
  ask.explore = team.settings().config.learning().explore();
  // Budgets of keys and tags pay for whole paths, and the policy goes stage by stage: what it
  // cannot pay for loses its dearest agent and is asked again. The cheapest path is left in the
  // end.
  for (;;) {
    ask.blocked = blocked_;
    trace.clear();
    SLUICE_RETURN_IF_ERROR(policy.router->Run(*policy.plan, state, ask, d, &trace));
    const absl::Span<const int32_t> path(d.path.data(), static_cast<size_t>(d.stages));
    if (rules_.empty() || team.Affords(rules_, path)) return absl::OkStatus();
    const int32_t dearest = *std::max_element(path.begin(), path.end(), [&](int32_t a, int32_t b) {
      return team.ExpectedCost(a) < team.ExpectedCost(b);
    });
    blocked_[static_cast<size_t>(dearest)] = Block::kOverBudget;
  }
}

bool Decisions::Keep(const v1::Query& q, const Team& team, const LearnedState& state, uint64_t id,
                     AgentDecision& d, AgentTrace& trace) {
  if (!state.policies->worth || (q.session().empty() && q.previous().empty())) return false;
  const Sessions::Last* last = previous_ ? &*previous_ : sessions_.Find(q.session());
  if (last == nullptr || last->graph != state.policies->fingerprint) return false;
  const std::vector<int32_t>& path = last->path;
  for (int32_t a : path) {
    if (!blocked_.empty() && blocked_[static_cast<size_t>(a)] != Block::kNone) return false;
  }
  if (!team.Affords(rules_, path)) return false;
  AgentRequest ask;
  ask.id = id;
  ask.intent = intent_;
  ask.live = team.health().live();
  ask.blocked = blocked_;
  const PolicySet::Policy& worth = *state.policies->worth;
  if (!worth.router->Run(*worth.plan, state.worth.state, ask, d, &trace).ok()) return false;
  if (!IsKept(GainOfMoving(trace, path), team.settings().config.affinity().price())) return false;
  for (AgentCandidate& c : trace) {
    c.chosen = c.agent == path[static_cast<size_t>(c.stage)];
    c.p = c.chosen ? 1 : 0;
  }
  std::copy(path.begin(), path.end(), d.path.begin());
  d.stages = static_cast<int>(path.size());
  d.propensity = 1;
  return true;
}

// What `explain` and the outcome will want to know, into the slot and the record.
void Decisions::Note(const v1::Query& q, const Team& team, const LearnedState& state, int policy,
                     const AgentDecision& d, Explained& slot) {
  slot.id = record_.id;
  slot.snapshot = state.version;
  if (slot.policies != state.policies) slot.policies = state.policies;
  slot.policy = policy;
  slot.propensity = d.propensity;
  slot.intent = intent_;
  slot.unix_ms = team.now().unix_ms;
  slot.barred.clear();

  record_.graph = state.policies->fingerprint;
  record_.policy = static_cast<uint32_t>(policy);
  record_.epoch = epochs_.now();
  record_.propensity = d.propensity;
  record_.unix_ms = slot.unix_ms;
  record_.intent = intent_;
  record_.path.assign(d.path.begin(), d.path.begin() + d.stages);
  record_.features.assign(q.features().begin(), q.features().end());
  record_.blocked.clear();
  for (size_t a = 0; a < blocked_.size(); ++a) {
    if (blocked_[a] == Block::kNone) continue;
    const auto agent = static_cast<int32_t>(a);
    record_.blocked.push_back(agent);
    if (blocked_[a] == Block::kUnhealthy || blocked_[a] == Block::kOverBudget)
      slot.barred.emplace_back(agent, team.WhyBarred(agent, blocked_[a], rules_));
  }
}

void Decisions::Tell(const Team& team, const PolicySet::Policy& policy, const AgentDecision& d,
                     const AgentTrace& trace, Answers& out) {
  receipts_.Make(record_, receipt_);
  Answers::Decision told;
  told.id = record_.id;
  told.propensity = d.propensity;
  told.kept = record_.kept;
  told.policy = policy.name;
  told.receipt = receipt_;
  told.stages = d.stages;
  for (int s = 0; s < d.stages; ++s) {
    Answers::Stage& to = told.of[static_cast<size_t>(s)];
    to.agent = &team.field(d.path[static_cast<size_t>(s)]);
    to.num_fallbacks = 0;
  }
  for (size_t at = 0; at < trace.size();) {
    const size_t begin = at;
    while (at < trace.size() && trace[at].stage == trace[begin].stage) ++at;
    best_.Find(absl::MakeConstSpan(trace).subspan(begin, at - begin));
    Answers::Stage& to = told.of[static_cast<size_t>(trace[begin].stage)];
    to.num_fallbacks = best_.size();
    for (size_t k = 0; k < best_.size(); ++k) to.fallbacks[k] = &team.field(best_.agent(k));
  }
  out.Add(told);
}

// Traffic by path. A graph may have more paths than are worth counting: beyond kMaxPaths new ones
// are left out.
void Decisions::CountPath(const AgentDecision& d, const AgentGraph& graph) {
  uint64_t key = 0;
  for (int s = 0; s < d.stages; ++s) {
    const auto agent = static_cast<uint64_t>(d.path[static_cast<size_t>(s)]);
    key = (std::rotl(key, 23) ^ agent) * 0x9E3779B97F4A7C15U;
  }
  auto at = paths_.find(key);
  if (at == paths_.end()) {
    if (paths_.size() >= kMaxPaths) return;
    at = paths_.emplace(key, Path{}).first;
    for (int s = 0; s < d.stages; ++s)
      at->second.agents.push_back(graph.agent(d.path[static_cast<size_t>(s)]).id);
  }
  ++at->second.chosen;
}

double Decisions::RetryAfter(const Team& team) const {
  double soonest = 0;
  for (size_t a = 0; a < blocked_.size(); ++a) {
    const Barred b = team.WhyBarred(static_cast<int32_t>(a), blocked_[a], rules_);
    if (b.free_in_s > 0 && (soonest == 0 || b.free_in_s < soonest)) soonest = b.free_in_s;
  }
  return soonest;
}

void Decisions::RunShadows(const Team& team, const LearnedState& state) {
  if (shadowed_.empty()) return;
  for (Experiment::Shadow& shadow : experiment_.shadows()) {
    const int index = state.policies->Find(shadow.policy);
    if (index < 0) continue;
    const PolicySet::Policy& policy = state.policies->policies[static_cast<size_t>(index)];
    for (const Shadowed& s : shadowed_) {
      AgentRequest ask;
      ask.id = s.id;
      ask.intent = s.intent;
      ask.blocked = s.blocked;
      ask.features = s.features;
      ask.live = team.health().live();
      ask.explore = team.settings().config.learning().explore();
      AgentDecision d;
      if (!policy.router
               ->Run(*policy.plan, state.of[static_cast<size_t>(index)].state, ask, d, nullptr)
               .ok())
        continue;
      ++shadow.decisions;
      shadow.same += std::equal(d.path.begin(), d.path.begin() + d.stages, s.executed.path.begin());
    }
  }
  shadowed_.clear();
}
SLUICE_END_NAMESPACE
