#include "sluice/runtime/service/server.h"

#include <google/protobuf/arena.h>
#include <sodium.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <unordered_map>
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
#include "sluice/runtime/service/views.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr uint32_t kWireVersion = 1;
constexpr int kDrainBatch = 256;  // messages taken before learned outcomes are answered
constexpr int kKeptAnswers = 64;  // decisions whose strings are kept for the next answer
constexpr auto kIdle = std::chrono::milliseconds(200);
constexpr auto kIdleAtTheEnd = std::chrono::milliseconds(20);

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
    durability_ = store_->durability();
    log_.Write("serving", {{"endpoint", endpoints().empty() ? "" : endpoints()[0]},
                           {"store", std::string(store_->name())},
                           {"durability", durability_}});
    try {
      Serve();
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
    o.identity = transport_->inside();
    o.key_file = c.key_file();
    o.model_of = [this](const std::string& agent) { return ModelOf(agent); };
    SLUICE_ASSIGN_OR_RETURN(http_, HttpServer::Start(o, context_, Transport::kInside));
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

  void Serve() {
    double tick = 0;
    zmq::pollitem_t items[] = {{transport_->handle(), 0, ZMQ_POLLIN, 0},
                               {nullptr, wake_, ZMQ_POLLIN, 0},
                               {transport_->connections().handle(), 0, ZMQ_POLLIN, 0}};
    for (;;) {
      zmq::poll(items, 3, stage_ == Stage::kServing ? kIdle : kIdleAtTheEnd);
      now_ = {SteadySeconds(), UnixMs()};
      if (items[1].revents != 0) {
        uint64_t ignored;
        if (read(wake_, &ignored, sizeof ignored) < 0) {  // somebody's wake-up was taken already
        }
      }
      if (items[2].revents != 0) transport_->connections().Notice();
      GoOnReloading();
      int taken = 0;
      while (taken < kDrainBatch && TakeOne()) ++taken;
      AnswerFeedback();
      if (now_.steady_s - tick >= 1) {
        Tick();
        tick = now_.steady_s;
      }
      if (GoOnStopping(taken)) return;
    }
  }

  // Serving; then, told to stop, everything is served for a while though /readyz says no; then
  // nothing new is decided and what is under way is answered, until nothing comes or time is up.
  // True: the end.
  bool GoOnStopping(int taken) {
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
    if (stage_ != Stage::kDraining || (!late && (taken > 0 || learner_->queued() > 0)))
      return false;
    const absl::Status saved = learner_->SaveNow();
    AnswerFeedback();
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

  // One message off the socket, and its answer. False: none was there.
  bool TakeOne() {
    Transport::Message& m = message_;
    if (!transport_->Receive(m)) return false;
    arena_.Reset();
    auto* response = google::protobuf::Arena::CreateMessage<v1::Response>(&arena_);
    auto* request = google::protobuf::Arena::CreateMessage<v1::Request>(&arena_);
    response->set_version(kWireVersion);
    bool later = false;
    if (Admit(m, *request, *response)) {
      try {
        later = Dispatch(m, *request, *response);
      } catch (const std::exception& e) {  // no request may end the service
        response->clear_body();
        SetError(response->mutable_error(), v1::INTERNAL, e.what());
        log_.Write("request failed", {{"why", e.what()}});
      }
    }
    if (!later) Send(m.peer, *response);
    if (!decisions_->experiment().shadows().empty()) {
      const State state = Learned();
      if (state->settings == team_->shared_settings()) decisions_->RunShadows(*team_, *state);
    }
    return true;
  }
  // Whether the message is a request that is to be answered now; if not, the response says why.
  bool Admit(Transport::Message& m, v1::Request& q, v1::Response& r) {
    if (m.frames != 1 || !q.ParseFromArray(m.body.data(), static_cast<int>(m.body.size()))) {
      ++tally_.malformed;
      SetError(r.mutable_error(), v1::INVALID_ARGUMENT,
               m.frames != 1 ? absl::StrCat("message has ", m.frames, " frames, wanted 1")
                             : absl::StrCat(m.body.size(), " bytes are no sluice.v1.Request"));
      return false;
    }
    r.set_request_id(q.request_id());
    caller_ = transport_->IsInside(m) ? q.caller() : m.key;
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
    if (!transport_->Allows(m.key)) {
      ++tally_.refused;
      SetError(r.mutable_error(), v1::UNAUTHENTICATED, "this key is no longer on the allow-list");
      return false;
    }
    if (rate_limit_.per_s() > 0 && !rate_limit_.Allows(ClientOf(m), now_.steady_s)) {
      ++tally_.rate_limited;
      SetError(r.mutable_error(), v1::RATE_LIMITED,
               absl::StrCat("more than ", rate_limit_.per_s(), " requests a second"));
      r.mutable_error()->set_retry_after_s(rate_limit_.retry_after_s());
      return false;
    }
    return true;
  }
  // Whose requests count together: of a key, or else of an address, which reconnecting keeps.
  std::string ClientOf(Transport::Message& m) const {
    if (!caller_.empty()) return caller_;
    if (transport_->IsInside(m)) return "http";
    const std::string address = Transport::PeerAddress(m);
    return address.empty() ? m.peer.identity : address;
  }
  void Send(const Peer& peer, const v1::Response& response) {
    tally_.undeliverable += !transport_->Send(peer, response);
  }

  // True: the answer comes later.
  bool Dispatch(const Transport::Message& m, const v1::Request& q, v1::Response& r) {
    switch (q.body_case()) {
      case v1::Request::kRoute:
        Route(q.route(), r);
        break;
      case v1::Request::kFeedback:
        return Feedback(m.peer, q, r);
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
    // Cleared and filled again it keeps its strings, which cost more to make than a decision; not
    // those of the rare large batch.
    if (answers_.decisions_size() > kKeptAnswers) answers_ = v1::RouteResponse();
    answers_.Clear();
    for (const v1::Query& q : request.queries())
      decisions_->Decide(q, caller_, *team_, *state, *answers_.add_decisions());
    r.unsafe_arena_set_allocated_route(&answers_);  // the arena's response does not own it
    ShareHeld();
  }
  bool Feedback(const Peer& peer, const v1::Request& q, v1::Response& r) {
    if (!FitsBatch(q.feedback().outcomes_size(), "outcomes", r)) return false;
    auto job = std::make_unique<FeedbackJob>();
    job->client = peer.identity;
    job->delimiter = peer.delimiter;
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
      Send({job->client, job->delimiter}, *response);
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

  // The serving thread's own.
  Instant now_;
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
  google::protobuf::Arena arena_;
  v1::RouteResponse answers_;
};
}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Create(ServerSettings settings, Options options) {
  auto server = std::make_unique<ServerImpl>(std::move(settings), std::move(options));
  SLUICE_RETURN_IF_ERROR(server->Open());
  return server;
}
SLUICE_END_NAMESPACE
