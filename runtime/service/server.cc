#include "sluice/runtime/service/server.h"

#include <google/protobuf/arena.h>
#include <sodium.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <future>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <zmq.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "sluice/runtime/service/answer.h"
#include "sluice/runtime/service/clock.h"
#include "sluice/runtime/service/decisions.h"
#include "sluice/runtime/service/endpoint.h"
#include "sluice/runtime/service/event_log.h"
#include "sluice/runtime/service/http.h"
#include "sluice/runtime/service/outcomes.h"
#include "sluice/runtime/service/rate_limit.h"
#include "sluice/runtime/service/reload.h"
#include "sluice/runtime/service/transport.h"
#include "sluice/runtime/service/turns.h"
#include "sluice/runtime/service/views.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr uint32_t kWireVersion = 1;
constexpr int kDrainBatch = 256;  // messages taken before learned outcomes are answered
using std::chrono::milliseconds;
constexpr size_t kBlockBytes = size_t{64} << 10;
constexpr milliseconds kIdle{200};
constexpr milliseconds kIdleAtTheEnd{20};
constexpr milliseconds kStep{100};  // how long an end of the server is not noticed

Learner::Options LearnerOptions(const v1::ServerConfig& c) {
  Learner::Options o;
  o.window = c.learning().window_epochs();
  o.publish_ms = c.learning().publish_ms();
  o.commit_ms = c.learning().commit_ms();
  o.snapshot_every = c.learning().snapshot_every();
  o.queue = c.limits().feedback_queue();
  o.keep_outcomes = c.state().keep_outcomes();
  o.keep_days = c.state().keep_days();
  return o;
}
absl::StatusOr<std::unique_ptr<Store>> OpenStore(const v1::StateConfig& c) {
  if (!c.sqlite().empty()) {
    SLUICE_RETURN_IF_ERROR(MakeStateFolder(c.sqlite()));
    return OpenSqliteStore(c.sqlite());
  }
  if (c.redis().empty())
    return c.keep_outcomes() > 0 ? MakeMemoryStore(std::min(c.keep_outcomes(), kMemoryOutcomes))
                                 : MakeMemoryStore();
  SLUICE_ASSIGN_OR_RETURN(const RedisOptions options, RedisOptionsOf(c));
  return OpenRedisStore(options);
}

class ServerImpl final : public Server {
 public:
  ServerImpl(ServerSettings settings, Options options)
      : options_(std::move(options)),
        log_(options_.log),
        team_(std::make_unique<Team>(std::make_shared<const ServerSettings>(std::move(settings)))) {
  }
  ~ServerImpl() override {
    closing_ = true;
    http_.reset();
    learner_.reset();
    transport_.reset();
    if (wake_ >= 0) close(wake_);
  }

  absl::Status Open() {
    if (sodium_init() < 0) return absl::InternalError("libsodium cannot start");
    wake_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (wake_ < 0) return absl::InternalError("eventfd failed");
    const v1::ServerConfig& c = config();
    SLUICE_ASSIGN_OR_RETURN(store_, OpenStore(c.state()));
    SLUICE_ASSIGN_OR_RETURN(std::string key, store_->GetOrPut("receipt_key", Receipts::NewKey()));
    receipts_ = std::make_unique<Receipts>(std::move(key));
    SLUICE_ASSIGN_OR_RETURN(learner_, Learner::Start(team_->shared_settings(), *store_,
                                                     LearnerOptions(c), [this] { Wake(); }));
    decisions_ = std::make_unique<Decisions>(*store_, *learner_, *receipts_, tally_);
    outcomes_ = std::make_unique<Outcomes>(*store_, *learner_, *receipts_, *decisions_, tally_);
    {
      Published<LearnedState>::Guard state(learner_->published(), 0);
      decisions_->epochs().Set(state->newest_epoch + 1, c.learning().epoch_decisions());
    }
    Adopt(c.active_policy());
    SLUICE_ASSIGN_OR_RETURN(transport_, Transport::Open(context_, c));
    if (c.http().port() > 0) SLUICE_RETURN_IF_ERROR(OpenHttp(c.http()));
    started_ = SteadySeconds();
    return absl::OkStatus();
  }

  absl::Status Run() override {
    std::unique_lock turn(turns_);
    durability_ = store_->durability();
    log_.Write("serving", {{"endpoint", endpoints().empty() ? "" : endpoints()[0]},
                           {"store", std::string(store_->name())},
                           {"durability", durability_}});
    try {
      Serve(turn);
    } catch (const zmq::error_t& e) {
      return absl::InternalError(absl::StrCat("zeromq: ", e.what()));
    }
    log_.Write("stopped", {{"decisions", absl::StrCat(tally_.decisions)},
                           {"feedbacks", absl::StrCat(tally_.feedbacks)}});
    return absl::OkStatus();
  }
  void Stop() override {
    stop_ = true;
    Wake();
  }
  void Reload() override {
    reload_asked_ = true;
    Wake();
  }
  std::string durability() const override { return store_->durability(); }
  const std::vector<std::string>& endpoints() const override { return transport_->endpoints(); }
  int http_port() const override { return http_ != nullptr ? http_->port() : 0; }

 private:
  using Models = std::unordered_map<std::string, std::string>;  // by agent
  using State = Published<LearnedState>::Guard;
  State Learned() { return State(learner_->published(), 0); }
  const v1::ServerConfig& config() const { return team_->settings().config; }

  absl::Status OpenHttp(const v1::HttpConfig& c) {
    HttpServer::Options o;
    o.host = c.host();
    o.port = static_cast<int>(c.port());
    o.names.assign(c.allow_host().begin(), c.allow_host().end());
    o.key_file = c.key_file();
    o.model_of = [this](const std::string& agent) { return ModelOf(agent); };
    o.ask = [this](const v1::Request& q, milliseconds time) { return Ask(q, time); };
    SLUICE_ASSIGN_OR_RETURN(http_, HttpServer::Start(o));
    return absl::OkStatus();
  }
  // Any thread's.
  std::string ModelOf(const std::string& agent) const {
    const std::shared_ptr<const Models> models = models_.load();
    const auto at = models->find(agent);
    return at == models->end() ? "" : at->second;
  }
  void Wake() {
    const uint64_t one = 1;
    if (write(wake_, &one, sizeof one) < 0) {  // full: it is awake already
    }
  }
  // What the rooms take from the team's settings.
  void Adopt(const std::string& active) {
    decisions_->Adopt(team_->settings(), active);
    auto models = std::make_shared<Models>();
    for (const std::vector<Agent>& stage : team_->graph().stages) {
      for (const Agent& agent : stage) models->emplace(agent.id, agent.model);
    }
    models_.store(std::move(models));
    const v1::LimitsConfig& limits = config().limits();
    rate_limit_.Set(limits.requests_per_s(), limits.burst());
    learner_->SetQueue(limits.feedback_queue());
    outcomes_->Adopt(team_->settings());
  }

  // `turn`: it has it, and gives it away while it waits.
  void Serve(std::unique_lock<Turns>& turn) {
    double tick = 0;
    for (;;) {
      turn.unlock();
      const Transport::Woken woken =
          transport_->Wait(wake_, stage_ == Stage::kServing ? kIdle : kIdleAtTheEnd);
      turn.lock();
      now_ = {SteadySeconds(), UnixMs()};
      if (woken.by_wake) {
        uint64_t ignored;
        if (read(wake_, &ignored, sizeof ignored) < 0) {  // somebody's wake-up was taken already
        }
      }
      GoOnReloading();
      int taken = 0;
      while (taken < kDrainBatch && TakeOne()) {
        ++taken;
        if (transport_->IsFull()) Flush();
        turns_.Yield();
      }
      AnswerFeedback();
      Flush();
      if (now_.steady_s - tick >= 1) {
        Tick();
        tick = now_.steady_s;
      }
      const bool idle = woken.by_time && taken == 0 && std::exchange(asked_, 0) == 0;
      if (GoOnStopping(idle)) return;
    }
  }

  // Serving; then, told to stop, everything is served for a while though /readyz says no; then
  // nothing new is decided and what is under way is answered, until nothing comes or time is up.
  // True: the end. `idle`: nothing came for a while.
  bool GoOnStopping(bool idle) {
    const v1::LimitsConfig& limits = config().limits();
    if (stop_ && stage_ == Stage::kServing) {
      stage_ = Stage::kLeaving;
      stage_until_ = now_.steady_s + limits.shutdown_delay_s();
      log_.Write("leaving", {{"seconds", absl::StrCat(limits.shutdown_delay_s())}});
    }
    if (stage_ == Stage::kLeaving && now_.steady_s >= stage_until_) {
      stage_ = Stage::kDraining;
      stage_until_ = now_.steady_s + limits.drain_s();
      log_.Write("draining", {{"seconds", absl::StrCat(limits.drain_s())}});
      return false;
    }
    const bool late = now_.steady_s >= stage_until_;
    if (stage_ != Stage::kDraining || (!late && (!idle || learner_->queued() > 0))) return false;
    const absl::Status saved = learner_->SaveNow();
    AnswerFeedback();
    Flush();
    NoteStoppedArms();
    if (!saved.ok()) log_.Write("snapshot failed", {{"why", std::string(saved.message())}});
    return true;
  }

  void Tick() {
    tally_.NextSecond(now_.unix_ms);
    const std::string trouble = learner_->trouble();
    if (trouble != trouble_) {
      log_.Write(trouble.empty() ? "feedback is stored again" : "feedback cannot be stored",
                 {{"why", trouble}});
      trouble_ = trouble;
    }
    for (const std::string& loss : learner_->TakeLosses())
      log_.Write("the store lost outcomes; what they taught is gone", {{"why", loss}});
    if (const std::string durability = store_->durability(); durability != durability_) {
      log_.Write("the store keeps otherwise than before",
                 {{"durability", durability}, {"was", durability_}});
      durability_ = durability;
    }
    rate_limit_.Forget(now_.steady_s);
    transport_->Refresh();
    const Connections::Refused refused = transport_->connections().TakeRefused();
    if (refused.count > 0) {
      tally_.refused += refused.count;
      log_.Write("connections refused",
                 {{"count", absl::StrCat(refused.count)}, {"last", refused.last}});
    }
    NoteStoppedArms();
  }
  void NoteStoppedArms() {
    const State state = Learned();
    if (state->stopped == stopped_) return;
    for (size_t a = 0; a < state->stopped.size(); ++a) {
      if (state->stopped[a] != 0 && !(a < stopped_.size() && stopped_[a] != 0))
        log_.Write("experiment arm stopped",
                   {{"arm", absl::StrCat(a)}, {"why", learner_->WhyStopped(a)}});
    }
    stopped_ = state->stopped;
  }

  void RefuseReload(absl::string_view why) {
    pending_.reset();
    ++tally_.failed_reloads;
    reload_error_ = std::string(why);
    log_.Write("reload refused; the old configuration stays", {{"why", reload_error_}});
  }
  // Read, then learned, then taken over: a step each time it is done.
  void GoOnReloading() {
    if (reload_asked_ && !reload_.reading() && !pending_) {
      reload_asked_ = false;
      if (options_.config_path.empty())
        return RefuseReload("there is no configuration file to read again");
      reload_.Start(options_.config_path, [this] { Wake(); });
    }
    if (auto read = reload_.Take()) {
      if (!read->ok()) return RefuseReload(read->status().message());
      absl::StatusOr<ReloadPlan> plan = PlanReload(team_->settings(), **std::move(read));
      if (!plan.ok()) return RefuseReload(plan.status().message());
      pending_ = std::move(*plan);
      learner_->Replace(pending_->settings);
    }
    if (!pending_) return;
    const std::optional<absl::Status> learned = learner_->TakeReplaced();
    if (!learned) return;
    if (!learned->ok()) return RefuseReload(learned->message());
    FollowTeam();
  }
  // Takes over the settings that the learner published: decisions need both of one team.
  void FollowTeam() {
    const std::string was = config().active_policy();
    const std::string chosen = decisions_->active();
    team_ = std::make_unique<Team>(pending_->settings, team_.get());
    // What an operator switched stays, unless the file now says something else or lacks it.
    const std::string& wanted = config().active_policy();
    const bool keep = wanted == was && team_->policies().Find(chosen) >= 0;
    Adopt(keep ? chosen : wanted);
    std::vector<std::string> said = pending_->changes;
    for (const std::string& line : pending_->restarts)
      said.push_back(absl::StrCat("needs a restart: ", line));
    if (keep && chosen != wanted)
      said.push_back(absl::StrCat("policy '", chosen, "' stays active, as it was switched to"));
    if (said.empty()) said.emplace_back("nothing changed");
    last_reload_ = std::move(said);
    pending_.reset();
    ++tally_.reloads;
    reload_error_.clear();
    log_.Write("reloaded",
               {{"file", options_.config_path}, {"what", absl::StrJoin(last_reload_, "; ")}});
  }

  // Who asks: a message of the socket or, without one, this process, which is told its answer of
  // outcomes by the promise.
  struct Asker {
    const Transport::Message* message = nullptr;
    std::shared_ptr<std::promise<v1::Response>> promise;
  };

  // One message off the socket, and its answer. False: none was there.
  bool TakeOne() {
    Transport::Message& m = message_;
    if (!transport_->Receive(m)) return false;
    arena_.Reset();
    answers_.Clear();
    auto* response = google::protobuf::Arena::CreateMessage<v1::Response>(&arena_);
    auto* request = google::protobuf::Arena::CreateMessage<v1::Request>(&arena_);
    caller_ = m.key;
    const bool later = Read(m, *request, *response) && Answer({.message = &m}, *request, *response);
    response->set_version(kWireVersion);
    if (!later) transport_->Post(m.peer, *response, answers_.bytes());
    return true;
  }
  // Any thread's: what the HTTP side asks, answered by the thread that asks, since waking another
  // one takes longer than a decision. Outcomes are told when they are durable.
  v1::Response Ask(const v1::Request& q, milliseconds time) {
    const auto until = std::chrono::steady_clock::now() + time;
    v1::Response r;
    std::string routed;
    Asker asker;
    bool later = false;
    {
      std::unique_lock turn(turns_, std::defer_lock);
      if (!turn.try_lock_until(until)) return NoAnswer(time);
      now_ = {SteadySeconds(), UnixMs()};
      ++asked_;
      caller_ = q.caller();
      answers_.Clear();
      if (q.has_feedback()) asker.promise = std::make_shared<std::promise<v1::Response>>();
      later = Answer(asker, q, r);
      routed = std::string(answers_.bytes());
      if (decisions_->any_shadowed()) Wake();
    }
    if (later) return Await(asker.promise->get_future(), until, time);
    if (!routed.empty()) r.mutable_route()->ParseFromString(routed);
    return r;
  }
  v1::Response Await(std::future<v1::Response> told, std::chrono::steady_clock::time_point until,
                     milliseconds time) const {
    for (;;) {
      const auto now = std::chrono::steady_clock::now();
      if (told.wait_until(std::min(until, now + kStep)) == std::future_status::ready)
        return told.get();
      if (closing_) return Refusal(v1::UNAVAILABLE, "the server stops");
      if (now >= until) return NoAnswer(time);
    }
  }
  static v1::Response Refusal(v1::Code code, absl::string_view why) {
    v1::Response r;
    SetError(r.mutable_error(), code, why);
    return r;
  }
  static v1::Response NoAnswer(milliseconds time) {
    return Refusal(v1::DEADLINE_EXCEEDED, absl::StrCat("no answer in ", time.count(), " ms"));
  }
  // Sends what was answered; what shadows would have done is nobody's delay.
  void Flush() {
    tally_.undeliverable += transport_->Flush();
    if (decisions_->experiment().shadows().empty()) return;
    const State state = Learned();
    if (state->settings == team_->shared_settings()) decisions_->RunShadows(*team_, *state);
  }
  // Whether the message is a request that is to be answered now; if not, the response says why.
  bool Read(const Transport::Message& m, v1::Request& q, v1::Response& r) {
    if (m.frames != 1 || !q.ParseFromArray(m.body.data(), static_cast<int>(m.body.size()))) {
      ++tally_.malformed;
      SetError(r.mutable_error(), v1::INVALID_ARGUMENT,
               m.frames != 1 ? absl::StrCat("message has ", m.frames, " frames, wanted 1")
                             : absl::StrCat(m.body.size(), " bytes are no sluice.v1.Request"));
      return false;
    }
    r.set_request_id(q.request_id());
    if (q.version() != kWireVersion) {
      SetError(
          r.mutable_error(), v1::UNIMPLEMENTED,
          absl::StrCat("request of version ", q.version(), ", this server speaks ", kWireVersion));
      return false;
    }
    // Any number may come: one far below 0 must not overflow.
    const int64_t deadline = std::max<int64_t>(q.deadline_unix_ms(), -1);
    const int64_t late_ms = deadline != 0 ? UnixMs() - deadline : 0;
    if (late_ms > 0) {
      SetError(r.mutable_error(), v1::DEADLINE_EXCEEDED,
               absl::StrCat("the deadline passed ", late_ms, " ms before the request was read"));
      return false;
    }
    if (transport_->Allows(m.key)) return true;
    ++tally_.refused;
    SetError(r.mutable_error(), v1::UNAUTHENTICATED, "this key is no longer on the allow-list");
    return false;
  }
  // Into the response, decisions into answers_. True: the answer comes later.
  bool Answer(const Asker& asker, const v1::Request& q, v1::Response& r) {
    if (rate_limit_.per_s() > 0 && !rate_limit_.Allows(ClientOf(asker), now_.steady_s)) {
      ++tally_.rate_limited;
      SetError(r.mutable_error(), v1::RATE_LIMITED,
               absl::StrCat("more than ", rate_limit_.per_s(), " requests a second"));
      r.mutable_error()->set_retry_after_s(rate_limit_.retry_after_s());
      return false;
    }
    try {
      return Dispatch(asker, q, r);
    } catch (const std::exception& e) {  // no request may end the service
      r.clear_body();
      answers_.Clear();
      SetError(r.mutable_error(), v1::INTERNAL, e.what());
      log_.Write("request failed", {{"why", e.what()}});
      return false;
    }
  }
  // Whose requests count together: of a key, or else of an address, which reconnecting keeps.
  std::string ClientOf(const Asker& asker) const {
    if (!caller_.empty()) return caller_;
    if (asker.message == nullptr) return "http";
    const std::string address = Transport::PeerAddress(*asker.message);
    return address.empty() ? asker.message->peer.identity : address;
  }

  // True: the answer comes later.
  bool Dispatch(const Asker& asker, const v1::Request& q, v1::Response& r) {
    switch (q.body_case()) {
      case v1::Request::kRoute:
        Route(q.route(), r);
        break;
      case v1::Request::kFeedback:
        return Feedback(asker, q, r);
      case v1::Request::kExplain:
        views::Explain(*decisions_, q.explain().decision_id(), r);
        break;
      case v1::Request::kStats:
        Stats(*r.mutable_stats());
        break;
      case v1::Request::kListPolicies: {
        const State state = Learned();
        views::Policies(*state, decisions_->ActiveIn(*state->policies), *r.mutable_list_policies());
        break;
      }
      case v1::Request::kSetPolicy:
        SetPolicy(q.set_policy(), r);
        break;
      case v1::Request::kSnapshot:
        Snapshot(q.snapshot(), r);
        break;
      case v1::Request::kHeatMap: {
        const State state = Learned();
        if (state->settings == team_->shared_settings())
          views::HeatMap(*state, decisions_->ActiveIn(*state->policies), *team_,
                         *r.mutable_heat_map());
        break;
      }
      case v1::Request::kHistory:
        views::History(tally_, *r.mutable_history());
        break;
      case v1::Request::kExperiment:
        ReportExperiment(r);
        break;
      case v1::Request::kHealth:
        r.mutable_health()->set_ready(stage_ == Stage::kServing);
        r.mutable_health()->set_version(SLUICE_VERSION);
        r.mutable_health()->set_state(durability_);
        break;
      case v1::Request::BODY_NOT_SET:
        SetError(r.mutable_error(), v1::UNIMPLEMENTED,
                 "the request has no body that this server knows");
    }
    return false;
  }

  bool FitsBatch(int n, absl::string_view what, v1::Response& r) const {
    const auto most = static_cast<int>(config().limits().max_batch());
    if (n > 0 && n <= most) return true;
    SetError(r.mutable_error(), v1::INVALID_ARGUMENT,
             absl::StrCat(n, " ", what, ", allowed 1 to ", most));
    return false;
  }
  void Route(const v1::RouteRequest& request, v1::Response& r) {
    if (stage_ == Stage::kDraining)
      return SetError(r.mutable_error(), v1::UNAVAILABLE, "the server drains");
    if (!FitsBatch(request.queries_size(), "queries", r)) return;
    const State state = Learned();
    Refresh(*state);
    decisions_->epochs().CatchUp(state->newest_epoch);
    decisions_->Decide(request.queries(), caller_, *team_, *state, answers_);
    ShareHeld();
  }
  bool Feedback(const Asker& asker, const v1::Request& q, v1::Response& r) {
    if (!FitsBatch(q.feedback().outcomes_size(), "outcomes", r)) return false;
    auto job = std::make_unique<FeedbackJob>();
    job->promise = asker.promise;
    if (asker.message != nullptr) {
      job->client = asker.message->peer.identity;
      job->delimiter = asker.message->peer.delimiter;
    }
    job->request_id = q.request_id();
    RefreshTeam();
    const absl::Status status = outcomes_->Take(q.feedback(), *team_, std::move(job));
    if (status.ok()) return true;
    const bool full = status.code() == absl::StatusCode::kResourceExhausted;
    tally_.overloaded += full;
    SetError(r.mutable_error(), full ? v1::OVERLOADED : CodeOf(status.code()), status.message());
    return false;
  }
  void AnswerFeedback() {
    std::vector<std::unique_ptr<FeedbackJob>> done = learner_->TakeDone();
    if (done.empty()) return;
    RefreshTeam();
    for (const std::unique_ptr<FeedbackJob>& job : done) {
      arena_.Reset();
      auto* response = google::protobuf::Arena::CreateMessage<v1::Response>(&arena_);
      response->set_version(kWireVersion);
      outcomes_->Answer(*job, *team_, *response);
      if (job->promise != nullptr) {
        job->promise->set_value(*response);
        continue;
      }
      transport_->Post({job->client, job->delimiter}, *response);
      if (transport_->IsFull()) Flush();
    }
  }
  // What decisions hold of budgets, for the other servers of a store.
  void ShareHeld() {
    const size_t rules = team_->settings().budgets.size();
    if (rules == 0 || !store_->shared()) return;
    std::vector<int64_t> held(rules);
    for (size_t r = 0; r < rules; ++r) held[r] = team_->reservations().held(r);
    learner_->ShareHeld(std::move(held));
  }
  // The team that the state is of, its breakers and budgets as they are now.
  void Refresh(const LearnedState& state) {
    if (pending_ && state.settings == pending_->settings) FollowTeam();
    outcomes_->Settle(*team_);
    team_->Refresh(state, now_);
  }
  void RefreshTeam() {
    const State state = Learned();
    Refresh(*state);
    ShareHeld();
  }

  void Stats(v1::StatsResponse& s) {
    RefreshTeam();
    views::Counters(tally_, s);
    views::Agents(*team_, s);
    views::Budgets(*team_, s);
    views::Paths(*decisions_, s);
    s.set_last_reload_error(reload_error_);
    for (const std::string& line : last_reload_) s.add_last_reload(line);
    s.set_durability(durability_);
    s.set_uptime_s(now_.steady_s - started_);
    s.set_feedback_queue(learner_->queued());
    const State state = Learned();
    const PolicySet& set = *state->policies;
    s.set_policy(set.policies[static_cast<size_t>(decisions_->ActiveIn(set))].name);
    s.set_snapshot(state->version);
    s.set_snapshot_age_s(now_.steady_s - static_cast<double>(state->published_ms) / 1e3);
  }
  void SetPolicy(const v1::SetPolicyRequest& q, v1::Response& r) {
    if (team_->policies().Find(q.name()) < 0)
      return SetError(
          r.mutable_error(), v1::NOT_FOUND,
          absl::StrCat("no policy '", q.name(), "'; known: ", team_->policies().Names()));
    r.mutable_set_policy()->set_previous(decisions_->active());
    decisions_->SetActive(q.name());
    log_.Write("policy set", {{"policy", q.name()}});
  }
  void Snapshot(const v1::SnapshotRequest& q, v1::Response& r) {
    if (const absl::Status status = learner_->SaveNow(); !status.ok())
      return SetError(r.mutable_error(), status);
    const State state = Learned();
    views::Snapshot(*state, q.include_state(), *r.mutable_snapshot());
  }
  void ReportExperiment(v1::Response& r) {
    const Experiment& e = decisions_->experiment();
    if (!e.running() && e.shadows().empty())
      return SetError(r.mutable_error(), v1::NOT_FOUND,
                      "no experiment is configured (experiment { name: } or { shadow: })");
    v1::ExperimentResponse& out = *r.mutable_experiment();
    learner_->ReportExperiment(out);
    for (const Experiment::Shadow& s : e.shadows()) {
      v1::ShadowResult& to = *out.add_shadows();
      to.set_policy(s.policy);
      to.set_decisions(s.decisions);
      to.set_same(s.same);
    }
  }

  enum class Stage : uint8_t { kServing, kLeaving, kDraining };

  Options options_;
  EventLog log_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Receipts> receipts_;
  zmq::context_t context_{1};
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Learner> learner_;
  std::unique_ptr<HttpServer> http_;
  int wake_ = -1;
  std::atomic<std::shared_ptr<const Models>> models_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> reload_asked_{false};
  std::atomic<bool> closing_{false};

  // Whose turn it is: the rooms are the serving thread's, or that of an HTTP thread that asks.
  Turns turns_;
  Instant now_;
  int asked_ = 0;  // over HTTP, since the serving thread looked
  double started_ = 0;
  Stage stage_ = Stage::kServing;
  double stage_until_ = 0;
  std::unique_ptr<Team> team_;
  Tally tally_;
  std::unique_ptr<Decisions> decisions_;
  std::unique_ptr<Outcomes> outcomes_;
  RateLimit rate_limit_;
  sluice::Reload reload_;
  std::optional<ReloadPlan> pending_;  // read, and the learner is at it
  std::string reload_error_;
  std::vector<std::string> last_reload_;
  std::string trouble_;
  std::string durability_;
  std::vector<uint8_t> stopped_;  // arms, as last logged
  std::string caller_;            // the key of the request at hand
  Transport::Message message_;
  // The messages of one request: those of most fit into a block that stays.
  std::array<char, kBlockBytes> block_;
  google::protobuf::Arena arena_{block_.data(), block_.size()};
  Answers answers_;  // to the request at hand
};
}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Create(ServerSettings settings, Options options) {
  auto server = std::make_unique<ServerImpl>(std::move(settings), std::move(options));
  SLUICE_RETURN_IF_ERROR(server->Open());
  return server;
}
SLUICE_END_NAMESPACE
