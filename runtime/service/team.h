#ifndef SLUICE_RUNTIME_SERVICE_TEAM_H_
#define SLUICE_RUNTIME_SERVICE_TEAM_H_
// The team that serves: its agents by name, and who of them may be chosen now. Breakers and budgets
// meet here, and nowhere else. One thread's at a time.
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/types/span.h"
#include "sluice/runtime/service/answers.h"
#include "sluice/runtime/service/budgets.h"
#include "sluice/runtime/service/config.h"
#include "sluice/runtime/service/health.h"
#include "sluice/runtime/service/learner.h"

SLUICE_BEGIN_NAMESPACE
// Why somebody may not be chosen, and when that ends by itself.
struct Barred {
  std::string why;
  double free_in_s = 0;  // 0: not known
};

class Team {
 public:
  // `before`: whose agents' health and open reservations go on; null: none.
  explicit Team(std::shared_ptr<const ServerSettings> settings, const Team* before = nullptr);

  const ServerSettings& settings() const { return *settings_; }
  const std::shared_ptr<const ServerSettings>& shared_settings() const { return settings_; }
  const PolicySet& policies() const { return *settings_->policies; }
  const AgentGraph& graph() const { return *settings_->policies->graph; }
  const AgentHealth& health() const { return health_; }
  std::optional<int32_t> Find(absl::string_view id) const;
  int64_t first_agent(int stage) const { return first_agent_[static_cast<size_t>(stage)]; }
  // The agent's id, as answers carry it.
  const AgentField& field(int32_t agent) const { return fields_[static_cast<size_t>(agent)]; }
  // Of one call: as configured, else as measured; USD.
  double ExpectedCost(int32_t agent) const;

  // Brings breakers and budgets up to now; a millisecond old they are new enough.
  void Refresh(const LearnedState& state, const Instant& now);
  // Of all queries; [agents].
  absl::Span<const Block> blocked() const { return blocked_; }
  bool any_blocked() const { return any_blocked_; }
  // Budgets of keys and tags that a query's payers have.
  std::vector<size_t> RulesOf(absl::Span<const uint64_t> payers) const;
  // Bars agents that would not leave enough for the cheapest rest of a path. O(agents).
  void BarByBudget(absl::Span<const size_t> rules, std::vector<Block>& blocked) const;
  // Whether what is left of the rules pays for the whole path.
  bool Affords(absl::Span<const size_t> rules, absl::Span<const int32_t> path) const;
  Barred WhyBarred(int32_t agent, Block block, absl::Span<const size_t> rules) const;

  // A decision was made: loads, probes and reservations.
  void Chosen(const DecisionRecord& d);
  // Its outcome was learned: what it held is free again.
  void Settled(const DecisionRecord& d);
  // Calls that an outcome tells. `failures[i]`: why call i failed.
  void Ended(const OutcomeRecord& o, absl::Span<const std::string> failures);

  // Spent and held, with what other servers hold; nano USD.
  int64_t spent(size_t rule) const { return spent_[rule]; }
  int64_t held(size_t rule) const { return reservations_.held(rule) + elsewhere_[rule]; }
  const Reservations& reservations() const { return reservations_; }
  const Instant& now() const { return now_; }

 private:
  int64_t LeftOf(size_t rule) const;
  void BlockAgent(size_t agent);
  template <class Visit>
  void VisitCosts(const DecisionRecord& d, const Visit& visit) const;

  std::shared_ptr<const ServerSettings> settings_;
  BreakerSettings breaker_;
  std::unordered_map<std::string, int32_t> by_id_;
  std::vector<int64_t> first_agent_;
  std::vector<AgentField> fields_;  // of each agent
  AgentHealth health_;
  Reservations reservations_;
  std::vector<int64_t> spent_, elsewhere_;     // one a rule
  std::vector<std::vector<size_t>> rules_of_;  // of each agent
  std::unordered_map<uint64_t, std::vector<size_t>> rules_of_payer_;
  std::vector<Block> blocked_;
  bool any_blocked_ = false;
  Instant now_;
  uint64_t version_ = 0;  // of the state that they are of
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_TEAM_H_
