#ifndef SLUICE_RUNTIME_SERVICE_EARLIER_TEAMS_H_
#define SLUICE_RUNTIME_SERVICE_EARLIER_TEAMS_H_
// A team changes while it serves: agents and tasks come, go and are renamed. Outcomes of decisions
// that an earlier team made still say how its agents did, so the store keeps who was in which team,
// and records are told in the present one's numbers.
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "sluice/runtime/service/config.h"
#include "sluice/runtime/store/record.h"
#include "sluice/runtime/store/store.h"

SLUICE_BEGIN_NAMESPACE
class EarlierTeams {
 public:
  explicit EarlierTeams(Store& store) : store_(store) {}
  // Translates into this team from now on.
  void Serve(const ServerSettings& now);
  // Has the store keep who is in it, for servers to come; once.
  absl::Status Keep();
  // Agents that have left are -1 in the path. False, and nothing is changed: no team of that
  // fingerprint was ever kept, it had another number of stages, or none of its path's agents, or of
  // its intent's tasks, is left.
  bool Translate(OutcomeRecord& o);

 private:
  struct Change {
    bool known = false;
    std::vector<int32_t> agent;  // by the earlier number; -1: gone
    std::vector<int32_t> task;
  };
  const Change& From(uint64_t graph);
  absl::Status Read(uint64_t graph, Change& change) const;

  Store& store_;
  v1::ServerConfig now_;
  uint64_t fingerprint_ = 0;
  bool kept_ = false;
  std::unordered_map<uint64_t, Change> changes_;
};
// Under which the store keeps a team: a v1::ServerConfig with its tasks, stages and policies.
std::string TeamKey(uint64_t fingerprint);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_EARLIER_TEAMS_H_
