#include "sluice/runtime/service/learner.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>

#include "absl/strings/str_cat.h"

SLUICE_BEGIN_NAMESPACE
namespace {
int64_t SteadyMs() {
  using namespace std::chrono;
  return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}
// A snapshot belongs to a graph and a policy's name; one of another shape is not read.
std::string SnapshotKey(const PolicySet& s, const PolicySet::Policy& p) {
  return absl::StrCat(p.name, "@", absl::Hex(s.fingerprint));
}
std::string ExperimentKey(const PolicySet& s) {
  return absl::StrCat("experiment@", absl::Hex(s.fingerprint));
}
}  // namespace

absl::StatusOr<std::unique_ptr<Learner>> Learner::Start(std::shared_ptr<const PolicySet> policies,
                                                        const v1::ExperimentConfig& experiment,
                                                        Store& store, const Options& options,
                                                        std::function<void()> done) {
  std::unique_ptr<Learner> l(new Learner(store, options, std::move(done)));
  SLUICE_RETURN_IF_ERROR(l->Restore(std::move(policies), experiment));
  SLUICE_ASSIGN_OR_RETURN(const uint64_t lease, store.LeaseIds(kLease));
  l->lease_ = lease;
  l->Publish();
  l->thread_ = std::thread([raw = l.get()] { raw->Loop(); });
  return l;
}

Learner::~Learner() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

bool Learner::Submit(std::unique_ptr<FeedbackJob>& job) {
  // Only an empty queue has somebody waiting for it; waking costs the caller more than all else
  // here.
  bool first = false;
  {
    std::lock_guard lock(mutex_);
    first = queue_.empty();
    if (stop_ || queued_ + job->outcomes.size() > static_cast<size_t>(options_.queue)) return false;
    queued_ += job->outcomes.size();
    queue_.push_back(std::move(job));
    first = first || queued_ >= kFullCommit;
  }
  if (first) wake_.notify_one();
  return true;
}
std::vector<std::unique_ptr<FeedbackJob>> Learner::TakeDone() {
  if (!any_done_.exchange(false))
    return {};  // without the lock: the serving thread asks after every message
  std::lock_guard lock(mutex_);
  return std::exchange(done_, {});
}
size_t Learner::queued() {
  std::lock_guard lock(mutex_);
  return queued_;
}
std::string Learner::trouble() {
  std::lock_guard lock(mutex_);
  return trouble_;
}
void Learner::Replace(std::shared_ptr<const PolicySet> policies,
                      const v1::ExperimentConfig& experiment) {
  {
    std::lock_guard lock(mutex_);
    replacement_ = std::move(policies);
    replacement_experiment_ = experiment;
  }
  wake_.notify_one();
}
void Learner::ReportExperiment(v1::ExperimentResponse& out) {
  std::lock_guard lock(experiment_mutex_);
  experiment_.Report(out);
}
std::string Learner::WhyStopped(size_t arm) {
  std::lock_guard lock(experiment_mutex_);
  return arm < experiment_.stopped().size() ? experiment_.why(arm) : "";
}
absl::Status Learner::SaveNow() {
  std::unique_lock lock(mutex_);
  const uint64_t mine = ++save_asked_;
  wake_.notify_one();
  saved_.wait(lock, [&] { return save_done_ >= mine || stop_; });
  return save_status_;
}

absl::Status Learner::Restore(std::shared_ptr<const PolicySet> policies,
                              const v1::ExperimentConfig& experiment) {
  std::vector<Book> books;
  SLUICE_ASSIGN_OR_RETURN(const uint64_t newest, store_.Newest());
  uint64_t from = newest;
  for (const PolicySet::Policy& p : policies->policies) {
    Book b{std::make_unique<Ledger>(*p.router, *p.plan, options_.window), 0};
    auto snapshot = store_.LoadSnapshot(SnapshotKey(*policies, p));
    if (snapshot.ok() && b.ledger->Parse(snapshot->bytes).ok()) b.through = snapshot->through;
    // Anything else (none yet, another method, damage) is learned again from the outcomes.
    from = std::min(from, b.through);
    books.push_back(std::move(b));
  }
  books_ = std::move(books);
  policies_ = std::move(policies);
  {
    std::lock_guard lock(experiment_mutex_);
    auto snapshot = store_.LoadSnapshot(ExperimentKey(*policies_));
    experiment_through_ =
        snapshot.ok() && experiment_.Parse(snapshot->bytes).ok() ? snapshot->through : 0;
    if (experiment_through_ == 0) experiment_ = {};
    experiment_.Adopt(experiment);
    experiment_id_ = ExperimentId(experiment);
    from = std::min(from, experiment_through_);
  }
  sequence_ = from;
  return ApplyStored();
}

absl::Status Learner::ApplyStored() {
  absl::Status bad;
  SLUICE_RETURN_IF_ERROR(store_.Read(sequence_, [&](uint64_t sequence, absl::string_view bytes) {
    const absl::StatusOr<OutcomeRecord> o = ParseOutcome(bytes);
    if (!o.ok()) {
      bad.Update(
          absl::DataLossError(absl::StrCat("outcome ", sequence, ": ", o.status().message())));
      sequence_ = sequence;
      return;
    }
    Apply(sequence, *o);
  }));
  return bad;
}

void Learner::Apply(uint64_t sequence, const OutcomeRecord& o) {
  sequence_ = sequence;
  if (o.decision.graph != policies_->fingerprint) return;  // of another graph
  const AgentGraph& g = *policies_->graph;
  if (o.decision.path.size() != static_cast<size_t>(g.num_stages()) ||
      o.decision.intent.size() != g.tasks.size())
    return;
  for (size_t i = 0; i < books_.size(); ++i) {
    if (sequence <= books_[i].through) continue;
    deltas_.clear();
    policies_->policies[i].router->Observe(*policies_->policies[i].plan, o.view(), deltas_);
    books_[i].ledger->Add(o.decision.epoch, deltas_);
  }
  if (o.decision.unit != 0 && sequence > experiment_through_) {
    std::lock_guard lock(experiment_mutex_);
    experiment_.Learn(o);
  }
  dirty_ = true;
}

void Learner::Publish() {
  auto s = std::make_unique<LearnedState>();
  s->policies = policies_;
  s->version = ++version_;
  s->sequence = sequence_;
  s->published_ms = SteadyMs();
  for (Book& b : books_) {
    const absl::Span<const double> state = b.ledger->State();
    s->of.push_back({{state.begin(), state.end()}, b.ledger->outcomes(), b.ledger->late()});
    s->newest_epoch = std::max(s->newest_epoch, b.ledger->newest());
  }
  s->experiment = experiment_id_;
  {
    std::lock_guard lock(experiment_mutex_);
    s->stopped = experiment_.stopped();
  }
  published_.Publish(std::move(s));
  dirty_ = false;
}

absl::Status Learner::Save() {
  for (size_t i = 0; i < books_.size(); ++i) {
    SLUICE_RETURN_IF_ERROR(store_.SaveSnapshot(SnapshotKey(*policies_, policies_->policies[i]),
                                               {sequence_, books_[i].ledger->Serialize()}));
  }
  std::string experiment;
  {
    std::lock_guard lock(experiment_mutex_);
    experiment = experiment_.Serialize();
  }
  SLUICE_RETURN_IF_ERROR(
      store_.SaveSnapshot(ExperimentKey(*policies_), {sequence_, std::move(experiment)}));
  since_save_ = 0;
  return absl::OkStatus();
}

void Learner::Commit(std::vector<std::unique_ptr<FeedbackJob>> jobs) {
  std::vector<StoredOutcome> batch;
  for (const auto& job : jobs) {
    for (const OutcomeRecord& o : job->outcomes)
      batch.push_back({o.decision.id, SerializeOutcome(o)});
  }
  absl::StatusOr<std::vector<bool>> fresh =
      batch.empty() ? std::vector<bool>{} : store_.Append(batch);
  absl::Status status = fresh.status();
  if (fresh.ok()) {
    size_t at = 0;
    uint64_t added = 0;
    for (const auto& job : jobs) {
      for (size_t i = 0; i < job->outcomes.size(); ++i, ++at) {
        const bool is_new = (*fresh)[at];
        job->results[job->slot[i]] =
            is_new ? FeedbackJob::Result::kApplied : FeedbackJob::Result::kDuplicate;
        added += is_new;
        if (is_new && !store_.shared()) Apply(sequence_ + 1, job->outcomes[i]);
      }
    }
    since_save_ += added;
    if (store_.shared()) status = ApplyStored();
  } else {
    for (const auto& job : jobs) job->status = status;
  }
  std::lock_guard lock(mutex_);
  trouble_ = std::string(status.message());
  for (auto& job : jobs) {
    queued_ -= job->outcomes.size();
    done_.push_back(std::move(job));
  }
  any_done_ = true;
}

void Learner::Loop() {
  // Serving goes first where both want a CPU: no preemption when this thread wakes, and a smaller
  // share.
  sched_param none{};
  sched_setscheduler(0, SCHED_BATCH, &none);
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), 10);
  int64_t published = SteadyMs();
  for (;;) {
    std::vector<std::unique_ptr<FeedbackJob>> jobs;
    std::shared_ptr<const PolicySet> replacement;
    v1::ExperimentConfig replacement_experiment;
    uint64_t save = 0;
    bool stop = false;
    {
      std::unique_lock lock(mutex_);
      const auto wait = std::chrono::milliseconds(
          dirty_ || store_.shared() ? std::max<int64_t>(1, options_.publish_ms) : 500);
      wake_.wait_for(lock, wait, [&] {
        return stop_ || !queue_.empty() || replacement_ != nullptr || save_asked_ > save_done_;
      });
      // Others may share the commit: a sync to disk costs more than the wait.
      if (!queue_.empty() && !stop_ && options_.commit_ms > 0) {
        wake_.wait_for(lock, std::chrono::milliseconds(options_.commit_ms),
                       [&] { return stop_ || queued_ >= kFullCommit; });
      }
      size_t outcomes = 0;
      while (!queue_.empty() && outcomes < 4096) {
        outcomes += std::max<size_t>(1, queue_.front()->outcomes.size());
        jobs.push_back(std::move(queue_.front()));
        queue_.pop_front();
      }
      replacement = std::exchange(replacement_, nullptr);
      if (replacement != nullptr) replacement_experiment = replacement_experiment_;
      save = save_asked_;
      stop = stop_ && queue_.empty();
    }
    if (!jobs.empty()) {
      Commit(std::move(jobs));
      done_callback_();
    } else if (store_.shared()) {  // what other servers learned
      const absl::Status status = ApplyStored();
      std::lock_guard lock(mutex_);
      trouble_ = std::string(status.message());
    }
    if (replacement != nullptr) {
      absl::Status status = Save();
      if (status.ok()) status = Restore(std::move(replacement), replacement_experiment);
      if (status.ok()) Publish();
      std::lock_guard lock(mutex_);
      trouble_ = std::string(status.message());
    }
    if (dirty_ && SteadyMs() - published >= options_.publish_ms) {
      Publish();
      published = SteadyMs();
    }
    if (lease_.load() == 0) {
      if (auto lease = store_.LeaseIds(kLease); lease.ok()) lease_ = *lease;
    }
    if (save > save_done_ || stop ||
        since_save_ >= static_cast<uint64_t>(options_.snapshot_every)) {
      if (dirty_) {
        Publish();
        published = SteadyMs();
      }
      const absl::Status status = Save();
      std::lock_guard lock(mutex_);
      if (!status.ok()) trouble_ = std::string(status.message());
      since_save_ = 0;
      save_status_ = status;
      save_done_ = save;
      saved_.notify_all();
    }
    if (stop) return;
  }
}
SLUICE_END_NAMESPACE
