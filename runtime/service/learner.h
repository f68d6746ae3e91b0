#ifndef SLUICE_RUNTIME_SERVICE_LEARNER_H_
#define SLUICE_RUNTIME_SERVICE_LEARNER_H_
// The one writer of what is learned. Outcomes wait in a bounded queue, are made durable a batch at
// a time, answered, folded into every policy's ledger and published as an immutable state. Serving
// reads that state without a lock.
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sluice/runtime/base/published.h"
#include "sluice/runtime/service/budgets.h"
#include "sluice/runtime/service/config.h"
#include "sluice/runtime/service/earlier_teams.h"
#include "sluice/runtime/service/experiment.h"
#include "sluice/runtime/service/retention.h"
#include "sluice/runtime/store/ledger.h"
#include "sluice/runtime/store/record.h"
#include "sluice/runtime/store/store.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
// All that a decision reads.
struct LearnedState {
  std::shared_ptr<const ServerSettings> settings;
  std::shared_ptr<const PolicySet> policies;             // of these settings
  uint64_t version = 0, newest_epoch = 0, sequence = 0;  // sequence: of the last outcome inside
  int64_t published_ms = 0;                              // steady clock
  struct Of {
    std::vector<double> state;
    int64_t outcomes = 0, late = 0;
  };
  std::vector<Of> of;                   // one a policy
  Of worth;                             // of PolicySet::worth
  std::vector<Spent> spent;             // one a budget
  std::vector<int64_t> held_elsewhere;  // nano USD, one a budget: other servers' reservations
  uint32_t experiment = 0;              // whose arms `stopped` speaks of
  std::vector<uint8_t> stopped;         // arms that a guardrail stopped
};

// One feedback request on its way to disk and back.
struct FeedbackJob {
  enum class Result : uint8_t { kRejected, kApplied, kDuplicate };
  // Whose it is: these are the caller's, the learner does not read them.
  std::shared_ptr<std::promise<v1::Response>> promise;  // null: a client of the socket
  std::string client;
  bool delimiter = false;
  uint64_t request_id = 0;
  std::vector<OutcomeRecord> outcomes;
  std::vector<std::vector<std::string>> failures;  // of each outcome's calls, for the caller's use
  std::vector<int> slot;  // of each outcome in the request; the rest were rejected before
  std::vector<std::string> reasons;  // one an outcome of the request; "" : not rejected
  std::vector<Result> results;       // one an outcome of the request
  std::vector<uint64_t> ids;
  absl::Status status;  // not OK: nothing was kept
};

class Learner {
 public:
  struct Options {
    int64_t window = 64, publish_ms = 20, snapshot_every = 20000, queue = 65536, commit_ms = 2;
    uint64_t keep_outcomes = 0;  // 0: all
    int64_t keep_days = 0;       // 0: for ever
  };
  // Restores ledgers from snapshots and the outcomes after them. `done` is called by the learner's
  // thread.
  static absl::StatusOr<std::unique_ptr<Learner>> Start(std::shared_ptr<const ServerSettings>,
                                                        Store& store, const Options&,
                                                        std::function<void()> done);
  ~Learner();  // drains, saves a snapshot

  // False: the queue is full and nothing was taken.
  bool Submit(std::unique_ptr<FeedbackJob>& job);
  std::vector<std::unique_ptr<FeedbackJob>> TakeDone();
  Published<LearnedState>& published() { return published_; }
  // Other settings, another team among them: what they learn is restored beside what runs, then
  // swapped. How that went is TakeReplaced's; the old settings stay where it failed.
  void Replace(std::shared_ptr<const ServerSettings>);
  // Of the last Replace, once; nothing while it goes on. `done` is called.
  std::optional<absl::Status> TakeReplaced();
  // Decisions whose outcomes were learned since the last call, where budgets are kept. Their cost
  // is in what is published.
  std::vector<DecisionRecord> TakeSettled();
  // What the store lost of what was read, since the last call: it was learned, and is not any more.
  std::vector<std::string> TakeLosses();
  // What this server's decisions hold of each budget, nano USD, for other servers of the store.
  void ShareHeld(std::vector<int64_t> held);
  void SetQueue(int64_t outcomes);
  void ReportExperiment(v1::ExperimentResponse& out);
  std::string WhyStopped(size_t arm);
  // A lease of ids ahead of need; 0: none ready.
  uint64_t TakeLease() { return lease_.exchange(0); }
  static constexpr uint64_t kLease = 1 << 20;
  size_t queued();
  // Saves now, waits for it.
  absl::Status SaveNow();
  // "" or why outcomes cannot be stored.
  std::string trouble();

 private:
  Learner(Store& store, const Options& o, std::function<void()> done)
      : store_(store), options_(o), done_callback_(std::move(done)), teams_(store) {}
  struct Book {
    std::unique_ptr<Ledger> ledger;
    uint64_t through = 0;  // already inside, when it was restored
  };
  // All that outcomes are folded into.
  struct Books {
    std::shared_ptr<const ServerSettings> settings;
    std::vector<Book> policies;
    std::optional<Book> worth;
    ExperimentBook experiment;
    uint64_t experiment_through = 0;
    SpendingBook spending;
    uint64_t spending_through = 0;
  };
  // The sequence through which the snapshot knows, once `into` took it. 0: none yet, of another
  // text, damaged, or of outcomes that the store has lost since: then it is learned again.
  template <class Parsed>
  uint64_t RestoreThrough(const std::string& key, uint64_t newest, Parsed& into);
  Book RestoreBook(const PolicySet& set, const PolicySet::Policy& policy, uint64_t newest);
  absl::Status Restore(std::shared_ptr<const ServerSettings>);
  void Apply(uint64_t sequence, const OutcomeRecord& o);
  void Learn(uint64_t sequence, const OutcomeRecord& o);  // of this team
  void Observe(const PolicySet::Policy& policy, Book& book, uint64_t sequence, uint64_t epoch,
               const AgentOutcome& o);
  absl::Status Swap(std::shared_ptr<const ServerSettings>);
  absl::Status ApplyStored();
  // Applies what is stored; where the store lost outcomes that were read, learns anew from the
  // rest.
  absl::Status CatchUp();
  void Exchange();
  void Trim();
  void Publish();
  absl::Status Save();
  void SaveFor(uint64_t asked);
  struct Work {
    std::vector<std::unique_ptr<FeedbackJob>> jobs;
    std::shared_ptr<const ServerSettings> replacement;
    uint64_t save = 0;
    bool stop = false;
  };
  Work NextWork();
  void Loop();
  absl::StatusOr<std::vector<bool>> Append(const std::vector<StoredOutcome>& batch);
  void Commit(std::vector<std::unique_ptr<FeedbackJob>> jobs);

  Store& store_;
  Options options_;
  std::function<void()> done_callback_;
  Published<LearnedState> published_;
  std::atomic<uint64_t> lease_{0};
  std::atomic<bool> any_done_{false};
  std::atomic<bool> any_settled_{false};
  static constexpr size_t kFullCommit = 1024;  // outcomes that need not wait for more
  static constexpr size_t kMostCommit = 4096;
  static constexpr size_t kMostSettled = 1 << 16;  // the rest expire

  std::mutex mutex_;  // the queues; never held over a commit
  std::condition_variable wake_, saved_;
  std::deque<std::unique_ptr<FeedbackJob>> queue_;
  size_t queued_ = 0;  // outcomes
  std::vector<std::unique_ptr<FeedbackJob>> done_;
  std::shared_ptr<const ServerSettings> replacement_;
  std::optional<absl::Status> replaced_;
  std::vector<DecisionRecord> settled_;
  std::vector<int64_t> shared_held_;
  std::vector<std::string> losses_;
  std::string trouble_;
  bool stop_ = false;
  uint64_t save_asked_ = 0, save_done_ = 0;
  absl::Status save_status_;

  // The learner writes, a reader of an experiment's results waits for one outcome at most.
  std::mutex experiment_mutex_;

  // The thread's own, but for the experiment.
  Books books_;
  EarlierTeams teams_;
  std::vector<SumDelta> deltas_;
  std::vector<DecisionRecord> newly_settled_;
  std::string who_;  // among the servers of one store
  std::vector<int64_t> held_elsewhere_;
  bool unreadable_ = false;  // the last reading met an outcome that is none
  uint64_t slowest_ = 0;     // sequence that all servers of the store have read
  int64_t exchanged_at_ = 0;
  DayMarks days_;
  uint64_t sequence_ = 0, version_ = 0, since_save_ = 0;
  int64_t published_at_ = 0;
  bool dirty_ = false;
  std::thread thread_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_LEARNER_H_
