#include "sluice/runtime/service/team.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"

SLUICE_BEGIN_NAMESPACE
Team::Team(std::shared_ptr<const ServerSettings> settings, const Team* before)
    : settings_(std::move(settings)),
      health_(static_cast<size_t>(settings_->policies->graph->num_agents())) {
  const v1::ServerConfig& c = settings_->config;
  breaker_ = {static_cast<int>(c.breaker().failures()), c.breaker().cooldown_s(),
              static_cast<int>(c.breaker().probes())};
  for (int s = 0; s < graph().num_stages(); ++s) first_agent_.push_back(graph().first_agent(s));
  blocked_.assign(static_cast<size_t>(graph().num_agents()), Block::kNone);
  rules_of_.resize(blocked_.size());
  int32_t number = 0;
  for (const v1::StageConfig& s : c.stage()) {
    for (const v1::AgentConfig& a : s.agent()) {
      by_id_.emplace(a.id(), number);
      fields_.emplace_back(a.id());
      std::optional<int32_t> was;
      if (before != nullptr) was = before->Find(a.id());
      if (before != nullptr && !was && !a.was().empty()) was = before->Find(a.was());
      if (was)
        health_.Inherit(static_cast<size_t>(number), before->health_, static_cast<size_t>(*was));
      ++number;
    }
  }
  const std::vector<BudgetRule>& rules = settings_->budgets;
  reservations_.Reset(rules.size(), c.limits().reserve_s());
  spent_.assign(rules.size(), 0);
  elsewhere_.assign(rules.size(), 0);
  for (size_t r = 0; r < rules.size(); ++r) {
    if (rules[r].agent >= 0) {
      rules_of_[static_cast<size_t>(rules[r].agent)].push_back(r);
    } else {
      rules_of_payer_[rules[r].payer].push_back(r);
    }
    if (before == nullptr) continue;
    const std::vector<BudgetRule>& old = before->settings_->budgets;
    for (size_t b = 0; b < old.size(); ++b) {
      // When they were decided is not known any more: they expire as if just now.
      if (old[b].id() == rules[r].id() && before->reservations_.held(b) > 0)
        reservations_.Hold(r, before->reservations_.held(b), before->now_.unix_ms);
    }
  }
}

std::optional<int32_t> Team::Find(absl::string_view id) const {
  const auto at = by_id_.find(std::string(id));
  if (at == by_id_.end()) return std::nullopt;
  return at->second;
}

double Team::ExpectedCost(int32_t agent) const {
  const double configured = graph().agent(agent).cost_usd;
  return configured > 0 ? configured : health_.MeanCost(static_cast<size_t>(agent));
}

int64_t Team::LeftOf(size_t rule) const {
  return settings_->budgets[rule].limit - spent_[rule] - held(rule);
}

void Team::BlockAgent(size_t agent) {
  Block block = health_.MayBeChosen(agent, breaker_) ? Block::kNone : Block::kUnhealthy;
  for (size_t rule : rules_of_[agent]) {
    const int64_t left = LeftOf(rule);
    const bool enough = left > 0 && NanoUsd(ExpectedCost(static_cast<int32_t>(agent))) <= left;
    if (block == Block::kNone && !enough) block = Block::kOverBudget;
  }
  blocked_[agent] = block;
  any_blocked_ = any_blocked_ || block != Block::kNone;
}

void Team::Refresh(const LearnedState& state, const Instant& now) {
  constexpr double kFresh = 1e-3;  // s
  if (state.version == version_ && now.steady_s - now_.steady_s < kFresh) return;
  version_ = state.version;
  now_ = now;
  health_.Refresh(breaker_, now);
  reservations_.Expire(now.unix_ms);
  const std::vector<BudgetRule>& rules = settings_->budgets;
  for (size_t r = 0; r < rules.size() && r < state.spent.size(); ++r) {
    spent_[r] = state.spent[r].In(PeriodOf(rules[r].per, now.unix_ms));
    elsewhere_[r] = r < state.held_elsewhere.size() ? state.held_elsewhere[r] : 0;
  }
  any_blocked_ = false;
  for (size_t a = 0; a < blocked_.size(); ++a) BlockAgent(a);
}

std::vector<size_t> Team::RulesOf(absl::Span<const uint64_t> payers) const {
  std::vector<size_t> rules;
  if (rules_of_payer_.empty()) return rules;
  for (uint64_t payer : payers) {
    const auto at = rules_of_payer_.find(payer);
    if (at != rules_of_payer_.end())
      rules.insert(rules.end(), at->second.begin(), at->second.end());
  }
  return rules;
}

void Team::BarByBudget(absl::Span<const size_t> rules, std::vector<Block>& blocked) const {
  if (rules.empty()) return;
  int64_t left = std::numeric_limits<int64_t>::max();
  for (size_t rule : rules) left = std::min(left, LeftOf(rule));
  const int stages = graph().num_stages();
  std::vector<int64_t> cost(blocked.size());
  for (size_t a = 0; a < cost.size(); ++a) cost[a] = NanoUsd(ExpectedCost(static_cast<int32_t>(a)));
  const auto each = [&](int s, const auto& visit) {
    const auto first = static_cast<size_t>(first_agent(s));
    for (size_t a = first; a < first + static_cast<size_t>(graph().stage_size(s)); ++a) visit(a);
  };
  std::vector<int64_t> cheapest(static_cast<size_t>(stages));
  int64_t all = 0;
  for (int s = 0; s < stages; ++s) {
    int64_t least = std::numeric_limits<int64_t>::max();
    each(s, [&](size_t a) {
      if (blocked[a] == Block::kNone) least = std::min(least, cost[a]);
    });
    if (least == std::numeric_limits<int64_t>::max()) return;  // nobody is left here anyway
    cheapest[static_cast<size_t>(s)] = least;
    all += least;
  }
  for (int s = 0; s < stages; ++s) {
    const int64_t rest = all - cheapest[static_cast<size_t>(s)];
    each(s, [&](size_t a) {
      if (blocked[a] == Block::kNone && (left <= 0 || cost[a] + rest > left))
        blocked[a] = Block::kOverBudget;
    });
  }
}

bool Team::Affords(absl::Span<const size_t> rules, absl::Span<const int32_t> path) const {
  int64_t cost = 0;
  for (int32_t a : path) cost += NanoUsd(ExpectedCost(a));
  for (size_t rule : rules) {
    if (cost > LeftOf(rule)) return false;
  }
  return true;
}

Barred Team::WhyBarred(int32_t agent, Block block, absl::Span<const size_t> rules) const {
  Barred barred;
  const auto a = static_cast<size_t>(agent);
  if (block == Block::kUnhealthy) {
    barred.why = health_.state(a).why;
    barred.free_in_s = health_.FreeIn(a, breaker_, now_);
  }
  if (block != Block::kOverBudget) return barred;
  const auto note = [&](size_t rule) {
    const BudgetRule& r = settings_->budgets[rule];
    const int64_t left = LeftOf(rule);
    const bool pays = left > 0 && left >= NanoUsd(ExpectedCost(agent));
    if (pays || !barred.why.empty()) return;
    barred.why = absl::StrCat("budget '", r.name, "': ", Usd(spent_[rule]), " USD spent and ",
                              Usd(held(rule)), " held of ", Usd(r.limit), " a ", NameOf(r.per));
    barred.free_in_s = static_cast<double>(EndOfPeriodMs(r.per, now_.unix_ms) - now_.unix_ms) / 1e3;
  };
  for (size_t rule : rules_of_[a]) note(rule);
  for (size_t rule : rules) note(rule);
  if (barred.why.empty()) barred.why = "the budget does not pay for a whole path with it";
  return barred;
}

template <class Visit>
void Team::VisitCosts(const DecisionRecord& d, const Visit& visit) const {
  if (settings_->budgets.empty()) return;
  int64_t total = 0;
  for (int32_t a : d.path) {
    if (a < 0) continue;  // it has left
    const int64_t cost = NanoUsd(ExpectedCost(a));
    total += cost;
    for (size_t rule : rules_of_[static_cast<size_t>(a)]) visit(rule, cost);
  }
  for (size_t rule : RulesOf(d.payers)) visit(rule, total);
}

void Team::Chosen(const DecisionRecord& d) {
  VisitCosts(d, [&](size_t rule, int64_t cost) { reservations_.Hold(rule, cost, d.unix_ms); });
  for (int32_t a : d.path) {
    health_.Chosen(static_cast<size_t>(a));
    BlockAgent(static_cast<size_t>(a));
  }
}

void Team::Settled(const DecisionRecord& d) {
  version_ = 0;  // somebody may be free again
  VisitCosts(d, [&](size_t rule, int64_t cost) { reservations_.Release(rule, cost, d.unix_ms); });
}

void Team::Ended(const OutcomeRecord& o, absl::Span<const std::string> failures) {
  for (int32_t a : o.decision.path) {
    if (a < 0) continue;
    health_.Released(static_cast<size_t>(a));
    if (o.graded) health_.Graded(static_cast<size_t>(a), o.quality);
  }
  for (size_t i = 0; i < o.calls.size(); ++i) {
    const OutcomeRecord::Call& c = o.calls[i];
    const absl::string_view why = i < failures.size() ? absl::string_view(failures[i]) : "";
    health_.Called(static_cast<size_t>(c.agent),
                   {c.failed, c.latency_s, c.cost_usd, why, o.decision.unix_ms}, breaker_, now_);
    BlockAgent(static_cast<size_t>(c.agent));
  }
}
SLUICE_END_NAMESPACE
