#ifndef SLUICE_RUNTIME_SERVICE_CONFIG_H_
#define SLUICE_RUNTIME_SERVICE_CONFIG_H_
// The server's configuration, checked: what is absent has its default, the graph is one, every
// policy can be made.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/api/agent_router.h"
#include "sluice/policies/experiment/assignment.h"
#include "sluice/runtime/service/budgets.h"
#include "sluice/runtime/service/intent.h"
#include "sluice/runtime/store/store.h"
#include "sluice/v1/config.pb.h"

SLUICE_BEGIN_NAMESPACE
// What a server routes by that names no policy. Chosen by the table "Agent routing" in
// tests/bench/README.md.
inline constexpr char kServedPolicy[] = "amro_s:pheromone=relative,memory=10000";

// Policies over one graph: what a decision reads beside the learned state. Immutable.
struct PolicySet {
  struct Policy {
    std::string name, spec;
    // Of the text and its weights: equal texts learn the same, whatever they are called.
    uint64_t fingerprint = 0;
    std::unique_ptr<const AgentRouter> router;
    std::unique_ptr<const AgentRouter::Plan> plan;
  };
  std::shared_ptr<const AgentGraph> graph;
  uint64_t fingerprint = 0;  // of tasks and agents' ids
  std::vector<Policy> policies;
  std::optional<Policy> worth;  // what a session's agents promise; where sessions keep theirs
  // Index of a name; -1: none.
  int Find(absl::string_view name) const;
  std::string Names() const;  // for errors: what is known
};

struct ServerSettings {
  v1::ServerConfig config;  // defaults filled in
  std::shared_ptr<const PolicySet> policies;
  std::vector<BudgetRule> budgets;
  std::shared_ptr<const IntentModel> intent;  // null: none is configured
};
// Tasks and stages of a configuration, not yet checked.
std::shared_ptr<AgentGraph> GraphOf(const v1::ServerConfig&);
// Which arm a unit is in; an error when the experiment is none.
absl::StatusOr<ArmAssignment> MakeAssignment(const v1::ExperimentConfig&);
// Errors name the line (syntax) or the field and what is allowed. `origin` stands in for a file
// name.
absl::StatusOr<ServerSettings> ParseSettings(const std::string& text, const std::string& origin);
absl::StatusOr<ServerSettings> LoadSettings(const std::string& path);
// Reads the password's file.
absl::StatusOr<RedisOptions> RedisOptionsOf(const v1::StateConfig&);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_CONFIG_H_
