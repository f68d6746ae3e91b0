#ifndef SLUICE_RUNTIME_SERVICE_DECISIONS_H_
#define SLUICE_RUNTIME_SERVICE_DECISIONS_H_
// From a query to a path, a receipt, and whatever Explain will want to know. One thread's at a
// time.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "sluice/runtime/service/answers.h"
#include "sluice/runtime/service/best_candidates.h"
#include "sluice/runtime/service/epochs.h"
#include "sluice/runtime/service/experiment.h"
#include "sluice/runtime/service/learner.h"
#include "sluice/runtime/service/receipt.h"
#include "sluice/runtime/service/sessions.h"
#include "sluice/runtime/service/tally.h"
#include "sluice/runtime/service/team.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
// A decision as it was made.
struct Explained {
  uint64_t id = 0;
  uint64_t snapshot = 0;
  int64_t unix_ms = 0;
  std::shared_ptr<const PolicySet> policies;  // of the decision
  int policy = 0;
  bool kept = false;
  double propensity = 0;
  std::vector<double> intent;
  AgentTrace trace;
  std::vector<std::pair<int32_t, Barred>> barred;
};

class Decisions {
 public:
  Decisions(Store& store, Learner& learner, const Receipts& receipts, Tally& tally)
      : store_(store), learner_(learner), receipts_(receipts), tally_(tally) {}

  // Settings that are not the team's. `active`: the policy of queries that no experiment takes.
  void Adopt(const ServerSettings& settings, const std::string& active);
  const std::string& active() const { return active_; }
  void SetActive(const std::string& policy) { active_ = policy; }
  // Its number in the set; 0 where a set that is still served lacks it.
  int ActiveIn(const PolicySet& set) const;

  using Queries = google::protobuf::RepeatedPtrField<v1::Query>;
  // A decision a query; nothing is counted for a query that gets none. `caller`: the key that asks,
  // "": none. Errors say when asking again may help, where that is known.
  void Decide(const Queries& queries, const std::string& caller, Team& team,
              const LearnedState& state, Answers& out);
  // What shadow policies would have done with the decisions just made. Their callers have answers.
  void RunShadows(const Team& team, const LearnedState& state);
  bool any_shadowed() const { return !shadowed_.empty(); }  // that wait for it

  // The query's tasks, [tasks].
  absl::Status InferIntent(const v1::Query& q, const ServerSettings& settings,
                           std::vector<double>& intent) const;
  const Explained* Find(uint64_t id) const;
  size_t explained() const { return explained_.size(); }
  Epochs& epochs() { return epochs_; }
  Experiment& experiment() { return experiment_; }
  // Whether this server made the decision since it started.
  bool Made(uint64_t id) const;
  struct Path {
    std::vector<std::string> agents;
    uint64_t chosen = 0;
  };
  const absl::flat_hash_map<uint64_t, Path>& paths() const { return paths_; }

 private:
  struct Shadowed {
    uint64_t id = 0;
    std::vector<double> intent;
    std::vector<Block> blocked;
    std::vector<float> features;
    AgentDecision executed;
  };
  uint64_t NextId();
  const Explained& Slot(uint64_t id) const { return explained_[id % explained_.size()]; }
  void FetchSlotsAfter(uint64_t id) const;
  // False: it was refused.
  bool DecideOne(const v1::Query& q, const std::string& caller, Team& team,
                 const LearnedState& state, Answers& out);
  absl::Status Choose(const v1::Query& q, Team& team, const LearnedState& state, uint64_t id,
                      Answers& out);
  absl::Status Understand(const v1::Query& q, const Team& team);
  absl::Status Bar(const v1::Query& q, const Team& team);
  void FindPayers(const v1::Query& q, const std::string& caller, const Team& team);
  int PolicyFor(const v1::Query& q, const LearnedState& state);
  absl::Status Run(const v1::Query& q, const Team& team, const PolicySet::Policy& policy,
                   absl::Span<const double> state, uint64_t id, AgentDecision& d,
                   AgentTrace& trace);
  bool Keep(const v1::Query& q, const Team& team, const LearnedState& state, uint64_t id,
            AgentDecision& d, AgentTrace& trace);
  void Note(const v1::Query& q, const Team& team, const LearnedState& state, int policy,
            const AgentDecision& d, Explained& slot);
  void Tell(const Team& team, const PolicySet::Policy& policy, const AgentDecision& d,
            const AgentTrace& trace, Answers& out);
  void CountPath(const AgentDecision& d, const AgentGraph& graph);
  double RetryAfter(const Team& team) const;

  Store& store_;
  Learner& learner_;
  const Receipts& receipts_;
  Tally& tally_;
  Epochs epochs_;
  Experiment experiment_;
  Sessions sessions_;
  std::string active_;
  uint64_t graph_ = 0;
  uint64_t next_id_ = 0;
  uint64_t ids_left_ = 0;
  std::vector<uint64_t> leases_;
  std::vector<Explained> explained_;
  std::vector<Shadowed> shadowed_;
  absl::flat_hash_map<uint64_t, Path> paths_;

  // Of the query at hand.
  std::vector<double> intent_;
  std::vector<Block> blocked_;
  std::vector<size_t> rules_;
  std::optional<Sessions::Last> previous_;
  DecisionRecord record_;
  std::string receipt_;
  BestCandidates best_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_DECISIONS_H_
