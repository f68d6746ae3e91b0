#include "sluice/runtime/service/budgets.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/base/hash.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using std::chrono::days;
using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::sys_days;
using std::chrono::sys_time;
using std::chrono::year_month;
using std::chrono::year_month_day;

constexpr int64_t kHourMs = 3600 * 1000;
constexpr int64_t kDayMs = 24 * kHourMs;
constexpr double kMostUsd = 1e9;

year_month MonthOf(int64_t unix_ms) {
  const sys_time<milliseconds> at{milliseconds(unix_ms)};
  const year_month_day date(std::chrono::floor<days>(at));
  return date.year() / date.month();
}

absl::StatusOr<BudgetRule> RuleOf(const v1::BudgetConfig& c, const AgentGraph& graph) {
  const int named = !c.agent().empty() + !c.key().empty() + !c.tag().empty();
  if (named != 1)
    return absl::InvalidArgumentError(
        absl::StrCat("budget '", c.name(), "': names ", named,
                     " of agent, key and tag; wanted exactly one of them"));
  BudgetRule rule;
  rule.per = c.per();
  absl::string_view whom;
  if (!c.agent().empty()) {
    whom = c.agent();
    for (int64_t a = 0; a < graph.num_agents(); ++a) {
      if (graph.agent(a).id == c.agent()) rule.agent = static_cast<int32_t>(a);
    }
    if (rule.agent < 0)
      return absl::NotFoundError(absl::StrCat("budget: no agent '", c.agent(), "'"));
    rule.payer = PayerHash(Payer::kAgent, whom);
  } else if (!c.key().empty()) {
    whom = c.key();
    rule.payer = PayerHash(Payer::kKey, whom);
  } else {
    whom = c.tag();
    rule.payer = PayerHash(Payer::kTag, whom);
  }
  rule.name = c.name().empty() ? absl::StrCat(whom, " per ", NameOf(c.per())) : c.name();
  if (!(c.usd() > 0 && c.usd() <= kMostUsd))
    return absl::OutOfRangeError(absl::StrCat("budget '", rule.name, "': ", c.usd(),
                                              " USD; allowed: above 0 and at most ", kMostUsd));
  rule.limit = NanoUsd(c.usd());
  return rule;
}
}  // namespace

int64_t NanoUsd(double usd) { return std::llround(usd * 1e9); }

int64_t PeriodOf(BudgetPeriod per, int64_t unix_ms) {
  if (per == v1::BudgetConfig::HOUR) return unix_ms / kHourMs;
  if (per == v1::BudgetConfig::DAY) return unix_ms / kDayMs;
  const year_month month = MonthOf(unix_ms);
  return int64_t{static_cast<int>(month.year())} * 12 + static_cast<unsigned>(month.month()) - 1;
}

int64_t EndOfPeriodMs(BudgetPeriod per, int64_t unix_ms) {
  if (per == v1::BudgetConfig::HOUR) return (unix_ms / kHourMs + 1) * kHourMs;
  if (per == v1::BudgetConfig::DAY) return (unix_ms / kDayMs + 1) * kDayMs;
  const year_month next = MonthOf(unix_ms) + std::chrono::months(1);
  const sys_time<milliseconds> begin = sys_days(next / std::chrono::day(1));
  return begin.time_since_epoch().count();
}

absl::string_view NameOf(BudgetPeriod per) {
  return per == v1::BudgetConfig::HOUR ? "hour" : per == v1::BudgetConfig::DAY ? "day" : "month";
}

uint64_t PayerHash(Payer kind, absl::string_view name) {
  constexpr absl::string_view kKind[] = {"agent", "key", "tag"};
  return HashText(absl::StrCat(kKind[static_cast<size_t>(kind)], "\n", name)) | 1;
}

uint64_t BudgetRule::id() const {
  return HashText(absl::StrCat(payer, "\n", static_cast<int>(per)));
}

absl::StatusOr<std::vector<BudgetRule>> BudgetRules(const v1::ServerConfig& config,
                                                    const AgentGraph& graph) {
  std::vector<v1::BudgetConfig> all(config.budget().begin(), config.budget().end());
  for (const v1::StageConfig& s : config.stage()) {
    for (const v1::AgentConfig& a : s.agent()) {
      const double usd = a.budget_usd_per_hour();
      if (!(usd >= 0 && usd <= kMostUsd))
        return absl::OutOfRangeError(absl::StrCat(
            "agent '", a.id(), "': budget_usd_per_hour: ", usd, " is outside [0, ", kMostUsd, "]"));
      if (usd == 0) continue;
      v1::BudgetConfig& c = all.emplace_back();
      c.set_agent(a.id());
      c.set_usd(usd);
    }
  }
  std::vector<BudgetRule> rules;
  for (const v1::BudgetConfig& c : all) {
    SLUICE_ASSIGN_OR_RETURN(BudgetRule rule, RuleOf(c, graph));
    for (const BudgetRule& other : rules) {
      if (other.id() == rule.id() || other.name == rule.name)
        return absl::InvalidArgumentError(
            absl::StrCat("budget '", rule.name, "' is given twice, or under another's name"));
    }
    rules.push_back(std::move(rule));
  }
  return rules;
}

void SpendingBook::Track(absl::Span<const BudgetRule> rules) {
  std::vector<Spent> spent(rules.size());
  for (size_t r = 0; r < rules.size(); ++r) {
    for (size_t old = 0; old < rules_.size(); ++old) {
      if (rules_[old].id() == rules[r].id()) spent[r] = spent_[old];
    }
  }
  rules_.assign(rules.begin(), rules.end());
  spent_ = std::move(spent);
}

void SpendingBook::Learn(const OutcomeRecord& o) {
  for (size_t r = 0; r < rules_.size(); ++r) {
    const BudgetRule& rule = rules_[r];
    const std::vector<uint64_t>& payers = o.decision.payers;
    const bool pays = std::find(payers.begin(), payers.end(), rule.payer) != payers.end();
    int64_t cost = 0;
    for (const OutcomeRecord::Call& c : o.calls) {
      if (rule.agent >= 0 ? c.agent == rule.agent : pays) cost += NanoUsd(c.cost_usd);
    }
    const int64_t period = PeriodOf(rule.per, o.unix_ms);
    if (cost == 0 || period < spent_[r].period) continue;
    if (period > spent_[r].period) spent_[r] = {period, 0};
    spent_[r].nano_usd += cost;
  }
}

uint64_t SpendingBook::fingerprint() const {
  std::string all;
  for (const BudgetRule& r : rules_) absl::StrAppend(&all, r.id(), "\n");
  return HashText(all);
}

std::string SpendingBook::Serialize() const {
  using record_internal::Put;
  std::string out;
  Put(out, fingerprint());
  for (const Spent& s : spent_) {
    Put(out, s.period);
    Put(out, s.nano_usd);
  }
  return out;
}

absl::Status SpendingBook::Parse(absl::string_view bytes) {
  record_internal::Reader r(bytes);
  if (r.Get<uint64_t>() != fingerprint())
    return absl::FailedPreconditionError("spending: a snapshot of other budgets");
  std::vector<Spent> read(rules_.size());
  for (Spent& s : read) {
    s.period = r.Get<int64_t>();
    s.nano_usd = r.Get<int64_t>();
  }
  if (r.failed() || !r.rest().empty())
    return absl::DataLossError("spending: snapshot has the wrong length");
  spent_ = std::move(read);
  return absl::OkStatus();
}

void Reservations::Reset(size_t rules, double hold_s) {
  slice_ms_ = std::max<int64_t>(1, static_cast<int64_t>(hold_s * 1e3 / kSlices));
  held_.assign(rules, 0);
  slices_.clear();
}

void Reservations::Hold(size_t rule, int64_t nano_usd, int64_t decided_ms) {
  const int64_t number = NumberOf(decided_ms);
  if (slices_.empty() || slices_.back().number < number)
    slices_.push_back({number, std::vector<int64_t>(held_.size())});
  slices_.back().held[rule] += nano_usd;
  held_[rule] += nano_usd;
}

void Reservations::Release(size_t rule, int64_t nano_usd, int64_t decided_ms) {
  const int64_t number = NumberOf(decided_ms);
  for (Slice& s : slices_) {
    if (s.number != number) continue;
    const int64_t there = std::min(s.held[rule], nano_usd);
    s.held[rule] -= there;
    held_[rule] -= there;
  }
}

void Reservations::Expire(int64_t now_ms) {
  const int64_t oldest = NumberOf(now_ms) - kSlices;
  while (!slices_.empty() && slices_.front().number < oldest) {
    for (size_t r = 0; r < held_.size(); ++r) held_[r] -= slices_.front().held[r];
    slices_.pop_front();
  }
}
SLUICE_END_NAMESPACE
