#ifndef SLUICE_RUNTIME_SERVICE_REPLAY_H_
#define SLUICE_RUNTIME_SERVICE_REPLAY_H_
// Replays a log in which every agent answered every query, so that any policy's regret is known
// exactly.
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/runtime/service/outcome_log.h"

SLUICE_BEGIN_NAMESPACE
struct ReplayOptions {
  double cost_weight = 0, latency_weight = 0;
  int64_t decisions = 13620;
  int64_t epoch = 16;  // decisions learned as one batch
  double warm_up =
      0;  // share of the queries learned from before, every agent's answer known; not replayed
  double ability = 1;  // prior ability of every agent
  // Instead of it: an agent's share of the warm-up's queries of each task that it answered well.
  bool ability_from_warm_up = false;
  bool predicted_intent = false;  // the log's intent columns instead of the task's name
  double gate = 0.5;
  // Queries come in sessions of so many of one task. With a price, a session keeps its agent as the
  // sidecar's affinity does; without one each query is decided alone.
  int64_t session = 1;
  std::optional<double> affinity_price;
  bool ask_afterwards = false;  // for ReplayRun::afterwards
};
struct ReplayRun {
  std::vector<float> utility,
      task_best;  // per decision: of the chosen agent; of the task's best on average
  std::vector<int32_t> row, agent;  // per decision: of the log; chosen
  std::vector<double> propensity;   // per decision: of the chosen agent
  // Means over the last third; cost and latency of what the log tells.
  double quality = 0, cost_usd = 0, latency_s = 0;
  // Mean utility when the policy decides every query once more by what it learned, and learns
  // nothing. The queries of a replay come without replacement, so an agent that was lucky so far
  // meets worse ones than its mean; asked of all of them, luck does not count.
  double afterwards = NAN;
  double moved = 0;  // share of the queries that follow another of their session, at another agent
  double LastThird() const;
};
// Needs a log that is complete (OutcomeLog::Complete) in what the weights ask for. `seed` orders
// the queries, splits the warm-up and is given to policies that draw.
absl::StatusOr<ReplayRun> Replay(const OutcomeLog&, const std::string& policy, const ReplayOptions&,
                                 uint64_t seed);

// What clairvoyance reaches: mean utility of the best agent overall, of each task, of each query.
struct Ceilings {
  double best_single, task_best, oracle;
};
Ceilings CeilingsOf(const OutcomeLog&, double cost_weight, double latency_weight);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_REPLAY_H_
