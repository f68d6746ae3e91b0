#include "sluice/runtime/service/learner.h"

#include <sched.h>
#include <sodium.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/service/clock.h"

SLUICE_BEGIN_NAMESPACE
namespace {
// A snapshot belongs to a team and a policy's text; one of another shape is not read.
std::string SnapshotKey(const PolicySet& s, const PolicySet::Policy& p) {
  return absl::StrCat(absl::Hex(p.fingerprint), "@", absl::Hex(s.fingerprint));
}
std::string ExperimentKey(const PolicySet& s) {
  return absl::StrCat("experiment@", absl::Hex(s.fingerprint));
}
constexpr char kDaysKey[] = "days";
constexpr int64_t kExchangeMs = 20;
constexpr int kForgetServerMs = 5000;

std::string SpendingKey(const SpendingBook& b) {
  return absl::StrCat("spending@", absl::Hex(b.fingerprint()));
}
}  // namespace

absl::StatusOr<std::unique_ptr<Learner>> Learner::Start(
    std::shared_ptr<const ServerSettings> settings, Store& store, const Options& options,
    std::function<void()> done) {
  std::unique_ptr<Learner> l(new Learner(store, options, std::move(done)));
  l->who_.resize(16);
  randombytes_buf(l->who_.data(), l->who_.size());
  SLUICE_RETURN_IF_ERROR(l->Restore(std::move(settings)));
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
void Learner::Replace(std::shared_ptr<const ServerSettings> settings) {
  {
    std::lock_guard lock(mutex_);
    replacement_ = std::move(settings);
    replaced_.reset();
  }
  wake_.notify_one();
}
std::optional<absl::Status> Learner::TakeReplaced() {
  std::lock_guard lock(mutex_);
  return std::exchange(replaced_, std::nullopt);
}
std::vector<DecisionRecord> Learner::TakeSettled() {
  if (!any_settled_.exchange(false)) return {};
  std::lock_guard lock(mutex_);
  return std::exchange(settled_, {});
}
std::vector<std::string> Learner::TakeLosses() {
  std::lock_guard lock(mutex_);
  return std::exchange(losses_, {});
}
void Learner::ShareHeld(std::vector<int64_t> held) {
  std::lock_guard lock(mutex_);
  shared_held_ = std::move(held);
}
void Learner::SetQueue(int64_t outcomes) {
  std::lock_guard lock(mutex_);
  options_.queue = outcomes;
}
void Learner::ReportExperiment(v1::ExperimentResponse& out) {
  std::lock_guard lock(experiment_mutex_);
  books_.experiment.Report(out);
}
std::string Learner::WhyStopped(size_t arm) {
  std::lock_guard lock(experiment_mutex_);
  return arm < books_.experiment.stopped().size() ? books_.experiment.why(arm) : "";
}
absl::Status Learner::SaveNow() {
  std::unique_lock lock(mutex_);
  const uint64_t mine = ++save_asked_;
  wake_.notify_one();
  saved_.wait(lock, [&] { return save_done_ >= mine || stop_; });
  return save_status_;
}

template <class Parsed>
uint64_t Learner::RestoreThrough(const std::string& key, uint64_t newest, Parsed& into) {
  const auto snapshot = store_.LoadSnapshot(key);
  const bool known = snapshot.ok() && snapshot->through <= newest;
  return known && into.Parse(snapshot->bytes).ok() ? snapshot->through : 0;
}

Learner::Book Learner::RestoreBook(const PolicySet& set, const PolicySet::Policy& policy,
                                   uint64_t newest) {
  Book b{std::make_unique<Ledger>(*policy.router, *policy.plan, options_.window), 0};
  b.through = RestoreThrough(SnapshotKey(set, policy), newest, *b.ledger);
  return b;
}

absl::Status Learner::Restore(std::shared_ptr<const ServerSettings> settings) {
  teams_.Serve(*settings);
  (void)teams_.Keep();  // where that fails now, no outcome of this team is taken before it is done
  SLUICE_ASSIGN_OR_RETURN(const uint64_t newest, store_.Newest());
  SLUICE_ASSIGN_OR_RETURN(const uint64_t oldest, store_.Oldest());
  uint64_t from = newest;
  Books books;
  const PolicySet& set = *settings->policies;
  for (const PolicySet::Policy& p : set.policies) {
    books.policies.push_back(RestoreBook(set, p, newest));
    from = std::min(from, books.policies.back().through);
  }
  if (set.worth) {
    books.worth = RestoreBook(set, *set.worth, newest);
    from = std::min(from, books.worth->through);
  }
  books.spending.Track(settings->budgets);
  books.spending_through = RestoreThrough(SpendingKey(books.spending), newest, books.spending);
  if (!settings->budgets.empty()) from = std::min(from, books.spending_through);
  books.experiment_through = RestoreThrough(ExperimentKey(set), newest, books.experiment);
  books.experiment.Adopt(settings->config.experiment());
  from = std::max(std::min(from, books.experiment_through), oldest - 1);
  if (const auto days = store_.LoadSnapshot(kDaysKey); days.ok()) days_.Parse(days->bytes);
  books.settings = std::move(settings);
  {
    std::lock_guard lock(experiment_mutex_);
    books_ = std::move(books);
  }
  sequence_ = from;
  return ApplyStored();
}

absl::Status Learner::CatchUp() {
  const absl::Status status = ApplyStored();
  if (!absl::IsDataLoss(status)) return status;
  const auto oldest = store_.Oldest();
  const auto newest = store_.Newest();
  const bool lost = oldest.ok() && newest.ok() &&
                    (sequence_ > *newest || sequence_ + 1 < *oldest || !unreadable_);
  if (!lost) return status;
  {
    std::lock_guard lock(mutex_);
    losses_.emplace_back(status.message());
  }
  const absl::Status again = Restore(books_.settings);
  dirty_ = true;
  // A hole in the middle stays one: what comes after it is learned, without looking back again.
  if (absl::IsDataLoss(again)) sequence_ = *newest;
  return again;
}

absl::Status Learner::ApplyStored() {
  absl::Status bad;
  unreadable_ = false;
  SLUICE_RETURN_IF_ERROR(store_.Read(sequence_, [&](uint64_t sequence, absl::string_view bytes) {
    const absl::StatusOr<OutcomeRecord> o = ParseOutcome(bytes);
    if (!o.ok()) {
      bad.Update(
          absl::DataLossError(absl::StrCat("outcome ", sequence, ": ", o.status().message())));
      sequence_ = sequence;
      unreadable_ = true;
      return;
    }
    Apply(sequence, *o);
  }));
  return bad;
}

void Learner::Observe(const PolicySet::Policy& policy, Book& book, uint64_t sequence,
                      uint64_t epoch, const AgentOutcome& o) {
  if (sequence <= book.through) return;
  deltas_.clear();
  policy.router->Observe(*policy.plan, o, deltas_);
  book.ledger->Add(epoch, deltas_);
}

void Learner::Apply(uint64_t sequence, const OutcomeRecord& o) {
  sequence_ = sequence;
  days_.Note(o.unix_ms, sequence);
  if (o.decision.graph == books_.settings->policies->fingerprint) return Learn(sequence, o);
  OutcomeRecord told = o;
  if (teams_.Translate(told)) Learn(sequence, told);
}

void Learner::Learn(uint64_t sequence, const OutcomeRecord& o) {
  const PolicySet& set = *books_.settings->policies;
  const AgentGraph& g = *set.graph;
  if (o.decision.path.size() != static_cast<size_t>(g.num_stages()) ||
      o.decision.intent.size() != g.tasks.size())
    return;
  dirty_ = true;
  if (!books_.settings->budgets.empty()) {
    if (sequence > books_.spending_through) books_.spending.Learn(o);
    if (!o.calls.empty() && newly_settled_.size() < kMostSettled)
      newly_settled_.push_back(o.decision);
  }
  if (!o.graded) return;
  const OutcomeRecord::Shares shares = o.shares();
  const AgentOutcome view = o.view(shares);
  const uint64_t epoch = o.decision.epoch;
  for (size_t i = 0; i < books_.policies.size(); ++i)
    Observe(set.policies[i], books_.policies[i], sequence, epoch, view);
  if (books_.worth) Observe(*set.worth, *books_.worth, sequence, epoch, view);
  if (o.decision.unit != 0 && sequence > books_.experiment_through) {
    std::lock_guard lock(experiment_mutex_);
    books_.experiment.Learn(o);
  }
}

void Learner::Publish() {
  auto s = std::make_unique<LearnedState>();
  s->settings = books_.settings;
  s->policies = books_.settings->policies;
  s->version = ++version_;
  s->sequence = sequence_;
  s->published_ms = SteadyMs();
  const auto copy = [&](Book& b) {
    const absl::Span<const double> state = b.ledger->State();
    s->newest_epoch = std::max(s->newest_epoch, b.ledger->newest());
    return LearnedState::Of{{state.begin(), state.end()}, b.ledger->outcomes(), b.ledger->late()};
  };
  for (Book& b : books_.policies) s->of.push_back(copy(b));
  if (books_.worth) s->worth = copy(*books_.worth);
  s->spent = books_.spending.spent();
  s->held_elsewhere = held_elsewhere_;
  s->experiment = ExperimentId(books_.settings->config.experiment());
  {
    std::lock_guard lock(experiment_mutex_);
    s->stopped = books_.experiment.stopped();
  }
  published_.Publish(std::move(s));
  dirty_ = false;
  published_at_ = SteadyMs();
  if (newly_settled_.empty()) return;
  std::lock_guard lock(mutex_);
  settled_.insert(settled_.end(), std::make_move_iterator(newly_settled_.begin()),
                  std::make_move_iterator(newly_settled_.end()));
  newly_settled_.clear();
  any_settled_ = true;
}

absl::Status Learner::Save() {
  const PolicySet& set = *books_.settings->policies;
  const auto save = [&](const PolicySet::Policy& p, const Book& b) {
    return store_.SaveSnapshot(SnapshotKey(set, p), {sequence_, b.ledger->Serialize()});
  };
  for (size_t i = 0; i < books_.policies.size(); ++i)
    SLUICE_RETURN_IF_ERROR(save(set.policies[i], books_.policies[i]));
  if (books_.worth) SLUICE_RETURN_IF_ERROR(save(*set.worth, *books_.worth));
  SLUICE_RETURN_IF_ERROR(
      store_.SaveSnapshot(SpendingKey(books_.spending), {sequence_, books_.spending.Serialize()}));
  std::string experiment;
  {
    std::lock_guard lock(experiment_mutex_);
    experiment = books_.experiment.Serialize();
  }
  SLUICE_RETURN_IF_ERROR(
      store_.SaveSnapshot(ExperimentKey(set), {sequence_, std::move(experiment)}));
  SLUICE_RETURN_IF_ERROR(store_.SaveSnapshot(kDaysKey, {sequence_, days_.Serialize()}));
  Trim();
  since_save_ = 0;
  return absl::OkStatus();
}

// What no server needs any more and nobody asked to keep. A failure is tried again at the next
// snapshot.
void Learner::Trim() {
  const auto newest = store_.Newest();
  if (!newest.ok()) return;
  uint64_t before = 1;
  if (options_.keep_outcomes > 0 && *newest > options_.keep_outcomes)
    before = *newest - options_.keep_outcomes + 1;
  if (options_.keep_days > 0) {
    const int64_t day = DayMarks::DayOf(UnixMs()) - options_.keep_days;
    before = std::max(before, days_.FirstSince(day, *newest + 1));
    days_.ForgetBefore(day - 1);
  }
  before = std::min(before, (store_.shared() ? std::min(slowest_, sequence_) : sequence_) + 1);
  if (before > 1) (void)store_.Trim(before);
}

// What this server holds of budgets and how far it has read, for the others; theirs for it.
void Learner::Exchange() {
  const int64_t now = SteadyMs();
  if (!store_.shared() || now - exchanged_at_ < kExchangeMs) return;
  exchanged_at_ = now;
  using record_internal::Put;
  const std::vector<BudgetRule>& rules = books_.settings->budgets;
  std::string mine;
  Put(mine, sequence_);
  {
    std::lock_guard lock(mutex_);
    for (size_t r = 0; r < rules.size() && r < shared_held_.size(); ++r) {
      Put(mine, rules[r].id());
      Put(mine, shared_held_[r]);
    }
  }
  const auto others = store_.Exchange(who_, mine, kForgetServerMs);
  if (!others.ok()) return;  // no news
  std::vector<int64_t> held(rules.size());
  slowest_ = sequence_;
  for (const std::string& other : *others) {
    record_internal::Reader r(other);
    slowest_ = std::min(slowest_, r.Get<uint64_t>());
    while (!r.failed() && !r.rest().empty()) {
      const auto id = r.Get<uint64_t>();
      const auto nano = r.Get<int64_t>();
      for (size_t i = 0; i < rules.size(); ++i) {
        if (rules[i].id() == id && !r.failed()) held[i] += std::max<int64_t>(0, nano);
      }
    }
  }
  if (held == held_elsewhere_) return;
  held_elsewhere_ = std::move(held);
  dirty_ = true;
}

absl::Status Learner::Swap(std::shared_ptr<const ServerSettings> settings) {
  // A snapshot saves reading the outcomes again; where it cannot be written they are read.
  const absl::Status saved = Save();
  const std::shared_ptr<const ServerSettings> before = books_.settings;
  absl::Status status = Restore(std::move(settings));
  if (!status.ok()) status.Update(Restore(before));
  Publish();
  if (!saved.ok()) {
    std::lock_guard lock(mutex_);
    trouble_ = std::string(saved.message());
  }
  return status;
}

// Outcomes of a team that nobody could tell later would be lost when the team changes.
absl::StatusOr<std::vector<bool>> Learner::Append(const std::vector<StoredOutcome>& batch) {
  if (batch.empty()) return std::vector<bool>{};
  SLUICE_RETURN_IF_ERROR(teams_.Keep());
  return store_.Append(batch);
}

void Learner::Commit(std::vector<std::unique_ptr<FeedbackJob>> jobs) {
  std::vector<StoredOutcome> batch;
  for (const auto& job : jobs) {
    for (const OutcomeRecord& o : job->outcomes)
      batch.push_back({o.decision.id, SerializeOutcome(o)});
  }
  absl::StatusOr<std::vector<bool>> fresh = Append(batch);
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
    if (store_.shared()) status = CatchUp();
    // What was spent has to be known before it is no longer held.
    if (!newly_settled_.empty()) Publish();
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

Learner::Work Learner::NextWork() {
  Work w;
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
  while (!queue_.empty() && outcomes < kMostCommit) {
    outcomes += std::max<size_t>(1, queue_.front()->outcomes.size());
    w.jobs.push_back(std::move(queue_.front()));
    queue_.pop_front();
  }
  w.replacement = std::exchange(replacement_, nullptr);
  w.save = save_asked_;
  w.stop = stop_ && queue_.empty();
  return w;
}

void Learner::SaveFor(uint64_t asked) {
  if (dirty_) Publish();
  const absl::Status status = Save();
  std::lock_guard lock(mutex_);
  if (!status.ok()) trouble_ = std::string(status.message());
  since_save_ = 0;
  save_status_ = status;
  save_done_ = asked;
  saved_.notify_all();
}

void Learner::Loop() {
  // Serving goes first where both want a CPU: no preemption when this thread wakes, and a smaller
  // share.
  sched_param none{};
  sched_setscheduler(0, SCHED_BATCH, &none);
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), 10);
  for (;;) {
    Work w = NextWork();
    if (!w.jobs.empty()) {
      Commit(std::move(w.jobs));
      done_callback_();
    } else if (store_.shared()) {  // what other servers learned
      const absl::Status status = CatchUp();
      std::lock_guard lock(mutex_);
      trouble_ = std::string(status.message());
    }
    Exchange();
    if (w.replacement != nullptr) {
      const absl::Status status = Swap(std::move(w.replacement));
      {
        std::lock_guard lock(mutex_);
        replaced_ = status;
      }
      done_callback_();
    }
    if (dirty_ && SteadyMs() - published_at_ >= options_.publish_ms) Publish();
    if (lease_.load() == 0) {
      if (auto lease = store_.LeaseIds(kLease); lease.ok()) lease_ = *lease;
    }
    if (w.save > save_done_ || w.stop ||
        since_save_ >= static_cast<uint64_t>(options_.snapshot_every))
      SaveFor(w.save);
    if (w.stop) return;
  }
}
SLUICE_END_NAMESPACE
