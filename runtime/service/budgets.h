#ifndef SLUICE_RUNTIME_SERVICE_BUDGETS_H_
#define SLUICE_RUNTIME_SERVICE_BUDGETS_H_
// What may be spent in a period, and by whom. Sums are integers of 1e-9 USD, so that a hundred
// times a hundredth is one.
//
// What was spent is folded from the outcomes, as everything learned is: it survives a restart, and
// all servers of one store agree on it. What decisions may still cost is held by the server that
// made them.
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "sluice/api/agent_router.h"
#include "sluice/runtime/store/record.h"
#include "sluice/v1/config.pb.h"

SLUICE_BEGIN_NAMESPACE
using BudgetPeriod = v1::BudgetConfig::Period;

int64_t NanoUsd(double usd);
inline double Usd(int64_t nano) { return static_cast<double>(nano) * 1e-9; }
// Periods are numbered through all time, in UTC.
int64_t PeriodOf(BudgetPeriod per, int64_t unix_ms);
int64_t EndOfPeriodMs(BudgetPeriod per, int64_t unix_ms);
absl::string_view NameOf(BudgetPeriod per);

// Who pays, as records name them. Never 0.
enum class Payer : uint8_t { kAgent, kKey, kTag };
uint64_t PayerHash(Payer kind, absl::string_view name);

struct BudgetRule {
  std::string name;
  uint64_t payer = 0;
  int32_t agent = -1;  // in the graph; -1: a key's or a tag's
  BudgetPeriod per = v1::BudgetConfig::HOUR;
  int64_t limit = 0;  // nano USD
  // The same for the same payer and period, whatever the limit.
  uint64_t id() const;
};
// Of the configuration's budgets and its agents' budget_usd_per_hour. Errors name the budget.
absl::StatusOr<std::vector<BudgetRule>> BudgetRules(const v1::ServerConfig& config,
                                                    const AgentGraph& graph);

struct Spent {
  int64_t period = 0;
  int64_t nano_usd = 0;
  int64_t In(int64_t now) const { return period == now ? nano_usd : 0; }
};

// The learner's: what outcomes settled.
class SpendingBook {
 public:
  // Keeps what was counted for rules that stay.
  void Track(absl::Span<const BudgetRule> rules);
  // Outcomes of a period that is over change nothing. O(rules * calls).
  void Learn(const OutcomeRecord& o);
  // One a rule.
  const std::vector<Spent>& spent() const { return spent_; }
  std::string Serialize() const;
  // Errors where it is of other rules.
  absl::Status Parse(absl::string_view bytes);
  // Names the rules that are tracked.
  uint64_t fingerprint() const;

 private:
  std::vector<BudgetRule> rules_;
  std::vector<Spent> spent_;
};

// The serving thread's: what its decisions may still cost, until their outcomes come or `hold_s`
// passed.
class Reservations {
 public:
  void Reset(size_t rules, double hold_s);
  void Hold(size_t rule, int64_t nano_usd, int64_t decided_ms);
  void Release(size_t rule, int64_t nano_usd, int64_t decided_ms);
  void Expire(int64_t now_ms);
  int64_t held(size_t rule) const { return held_[rule]; }

 private:
  struct Slice {  // decisions of one span of time
    int64_t number = 0;
    std::vector<int64_t> held;
  };
  int64_t NumberOf(int64_t decided_ms) const { return decided_ms / slice_ms_; }
  static constexpr int kSlices = 16;
  int64_t slice_ms_ = 1;
  std::vector<int64_t> held_;
  std::deque<Slice> slices_;  // ascending
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_BUDGETS_H_
