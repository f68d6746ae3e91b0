#ifndef SLUICE_RUNTIME_SERVICE_OUTCOMES_H_
#define SLUICE_RUNTIME_SERVICE_OUTCOMES_H_
// From what callers tell of how decisions ended to records on disk, and the answers to that. The
// serving thread's.
#include <deque>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/runtime/service/decisions.h"
#include "sluice/runtime/service/learner.h"
#include "sluice/runtime/service/receipt.h"
#include "sluice/runtime/service/tally.h"
#include "sluice/runtime/service/team.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
class Outcomes {
 public:
  Outcomes(Store& store, Learner& learner, const Receipts& receipts, Decisions& decisions,
           Tally& tally)
      : learner_(learner),
        receipts_(receipts),
        decisions_(decisions),
        tally_(tally),
        teams_(store) {}
  void Adopt(const ServerSettings& settings) { teams_.Serve(settings); }

  // Checks every outcome and hands the good ones to the learner; those that are refused get their
  // reason. An error: nothing was kept. `job` has its caller's fields.
  absl::Status Take(const v1::FeedbackRequest& request, const Team& team,
                    std::unique_ptr<FeedbackJob> job);
  // What the learner is done with, as an answer; notes what new outcomes say of the agents.
  void Answer(const FeedbackJob& job, Team& team, v1::Response& r);
  // What outcomes settled is no longer held.
  void Settle(Team& team);

 private:
  struct Checked {
    OutcomeRecord record;
    std::vector<std::string> failures;  // of its calls
  };
  absl::StatusOr<Checked> Check(const v1::Outcome& o, const Team& team);
  absl::StatusOr<DecisionRecord> FromLabelled(const v1::Labelled& l, const Team& team);
  absl::Status AddCalls(const v1::Outcome& o, const Team& team, Checked& c) const;
  void ShareCost(const v1::Outcome& o, const Team& team, OutcomeRecord& record) const;
  void Notice(const OutcomeRecord& o, const std::vector<std::string>& failures, Team& team);
  void RememberUngraded(uint64_t decision);

  static constexpr size_t kMaxUngraded = 65536;
  Learner& learner_;
  const Receipts& receipts_;
  Decisions& decisions_;
  Tally& tally_;
  EarlierTeams teams_;
  std::vector<double> intent_;
  // Decisions whose calls were told before their grade.
  std::unordered_set<uint64_t> ungraded_;
  std::deque<uint64_t> ungraded_order_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_OUTCOMES_H_
