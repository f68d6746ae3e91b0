#ifndef SLUICE_RUNTIME_SERVICE_AFFINITY_H_
#define SLUICE_RUNTIME_SERVICE_AFFINITY_H_
// Whether a session keeps its agents: the rule that the sidecar and the replay share.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/agent_router.h"

SLUICE_BEGIN_NAMESPACE
// The router whose trace tells candidates' expected utility (eta); its choice is not used.
inline std::string WorthSpec(double cost_weight, double latency_weight) {
  return absl::StrCat("epsilon_greedy:epsilon=0,cost_weight=", cost_weight,
                      ",latency_weight=", latency_weight);
}
// What the stage that would gain most has to gain over the kept path; at least 0.
inline double GainOfMoving(const AgentTrace& worth, absl::Span<const int32_t> path) {
  std::vector<double> best(path.size(), -INFINITY);
  std::vector<double> kept(path.size(), -INFINITY);
  for (const AgentCandidate& c : worth) {
    const auto stage = static_cast<size_t>(c.stage);
    if (c.block == Block::kNone) best[stage] = std::max(best[stage], double{c.eta});
    if (c.agent == path[stage]) kept[stage] = c.eta;
  }
  double gain = 0;
  for (size_t s = 0; s < path.size(); ++s) gain = std::max(gain, best[s] - kept[s]);
  return gain;
}
// Moving has to gain the price; where nothing is to gain nobody moves.
inline bool IsKept(double gain, double price) { return gain <= 0 || gain < price; }
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_AFFINITY_H_
