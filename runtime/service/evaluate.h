#ifndef SLUICE_RUNTIME_SERVICE_EVALUATE_H_
#define SLUICE_RUNTIME_SERVICE_EVALUATE_H_
// What other policies would have earned on the traffic that was served, from the outcomes in a
// server's store. Progressive validation: outcomes are read in their order, and a policy is asked
// for its probability of the logged path with what it had learned from the outcomes before; so is
// the reward model. Nothing is judged by what it was fitted on.
//
// Not logged, and so not replayed: agents' load and latency at the time (a policy that weighs them
// has its priors), and what a policy would have learned from answers that it, and not the logging
// policy, had asked for.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/api/agent_router.h"
#include "sluice/policies/experiment/off_policy.h"
#include "sluice/runtime/store/record.h"
#include "sluice/runtime/store/store.h"

SLUICE_BEGIN_NAMESPACE
struct OpeOptions {
  // Text as in the server's configuration, or the name of a policy that is stored with the graph.
  std::vector<std::string> policies;
  // Reward: quality - cost_weight * USD - latency_weight * seconds.
  double cost_weight = 0, latency_weight = 0;
  double explore = 0;       // share that the policies spread evenly, as AgentRequest has it
  int64_t window = 64;      // epochs, as the server's
  int64_t since_ms = 0;     // judged are decisions from here, in milliseconds since 1970
  int64_t until_ms = 0;     // to before here; 0: no end
  int64_t last = 0;         // and of these only so many, the newest; 0: all
  double model_prior = 20;  // outcomes for which the mean of all counts in each cell of the model
  std::function<void(int64_t done, int64_t of)> progress;  // outcomes read; may be empty
  // Every judged outcome with its reward, in order; may be empty.
  std::function<void(const AgentGraph&, const OutcomeRecord&, double reward)> each;
};
// Where the outcomes went: judged, or why not. All but those of other graphs and ungraded ones are
// learned from.
struct OpeCounts {
  int64_t outcomes = 0, judged = 0;
  int64_t other_graph = 0;  // of an earlier configuration: its agents are others
  int64_t labelled = 0;     // warmed up: no policy decided
  int64_t kept = 0;         // a session kept its agents: no policy decided
  int64_t ungraded = 0;     // nobody said how good the answer was
  int64_t unfit = 0;        // no propensity, or not of the graph's shape
  int64_t outside = 0;      // of what was asked for: too old, too new
};
struct OpePolicy {
  std::string name;
  std::vector<LoggedDecision> log;  // one a judged outcome
};
struct OpeRun {
  OpeCounts counts;
  std::shared_ptr<const AgentGraph> graph;  // of the newest outcome
  int64_t first_ms = 0, last_ms = 0;        // of the judged decisions
  std::vector<OpePolicy> policies;          // as asked for
};
// Reads the store twice. O(outcomes * policies * (1 + agents of all stages but the last)
// decisions).
absl::StatusOr<OpeRun> EvaluateStore(Store& store, const OpeOptions& o);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_EVALUATE_H_
