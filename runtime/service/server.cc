#include "sluice/runtime/service/server.h"

#include <google/protobuf/arena.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <unordered_map>
#include <zmq.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "sluice/runtime/base/hash.h"
#include "sluice/runtime/service/allow_list.h"
#include "sluice/runtime/service/endpoint.h"
#include "sluice/runtime/service/experiment.h"
#include "sluice/runtime/service/health.h"
#include "sluice/runtime/service/http.h"
#include "sluice/runtime/service/intent.h"
#include "sluice/runtime/service/latency_histogram.h"
#include "sluice/runtime/service/learner.h"
#include "sluice/runtime/service/receipt.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr uint32_t kWireVersion = 1;
constexpr int kDrainBatch = 256;  // messages taken before learned outcomes are answered
constexpr size_t kMaxPaths = 4096;
constexpr size_t kMaxClients = 65536;  // token buckets kept

double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
int64_t UnixMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}
const char* BlockName(Block b) {
  switch (b) {
    case Block::kNone:
      return "";
    case Block::kUnhealthy:
      return "breaker open";
    case Block::kOverBudget:
      return "over budget";
    case Block::kCapability:
      return "above the query's cost limit";
    case Block::kCaller:
      return "excluded by the caller";
  }
  return "";
}
v1::Code CodeOf(absl::StatusCode c) {
  switch (c) {
    case absl::StatusCode::kOk:
      return v1::OK;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return v1::INVALID_ARGUMENT;
    case absl::StatusCode::kNotFound:
      return v1::NOT_FOUND;
    case absl::StatusCode::kUnavailable:
      return v1::UNAVAILABLE;
    case absl::StatusCode::kUnimplemented:
      return v1::UNIMPLEMENTED;
    case absl::StatusCode::kFailedPrecondition:
      return v1::FAILED_PRECONDITION;
    default:
      return v1::INTERNAL;
  }
}
void SetError(v1::Error* e, v1::Code code, absl::string_view text) {
  e->set_code(code);
  e->set_text(std::string(text));
}
std::string JsonText(absl::string_view s) {
  std::string out = "\"";
  for (char c : s) {
    if (c == '"' || c == '\\')
      absl::StrAppend(&out, "\\", std::string(1, c));
    else if (static_cast<unsigned char>(c) < 0x20)
      absl::StrAppend(&out, "\\u00", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
    else
      out.push_back(c);
  }
  return out + "\"";
}

class ServerImpl final : public Server {
 public:
  ServerImpl(ServerSettings settings, Options options)
      : settings_(std::move(settings)),
        options_(std::move(options)),
        health_(settings_.policies->graph->num_agents()) {}
  ~ServerImpl() override {
    http_.reset();
    learner_.reset();
    refusals_.reset();
    allow_list_.reset();
    router_.close();
    if (wake_ >= 0) close(wake_);
  }

  absl::Status Open() {
    const v1::ServerConfig& c = settings_.config;
    if (sodium_init() < 0) return absl::InternalError("libsodium cannot start");
    wake_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (wake_ < 0) return absl::InternalError("eventfd failed");
    if (!c.state().sqlite().empty()) {
      SLUICE_ASSIGN_OR_RETURN(store_, OpenSqliteStore(c.state().sqlite()));
    } else if (!c.state().redis().empty()) {
      SLUICE_ASSIGN_OR_RETURN(store_, OpenRedisStore(c.state().redis(), c.state().redis_prefix()));
    } else {
      store_ = MakeMemoryStore();
    }
    SLUICE_ASSIGN_OR_RETURN(std::string key, store_->GetOrPut("receipt_key", Receipts::NewKey()));
    receipts_ = std::make_unique<Receipts>(std::move(key));
    Learner::Options learning;
    learning.window = c.learning().window_epochs();
    learning.publish_ms = c.learning().publish_ms();
    learning.commit_ms = c.learning().commit_ms();
    learning.snapshot_every = c.learning().snapshot_every();
    learning.queue = c.limits().feedback_queue();
    SLUICE_ASSIGN_OR_RETURN(learner_, Learner::Start(settings_.policies, c.experiment(), *store_,
                                                     learning, [this] { Wake(); }));
    {
      Published<LearnedState>::Guard state(learner_->published(), 0);
      epoch_ = state->newest_epoch + 1;
    }
    SLUICE_RETURN_IF_ERROR(Adopt());
    try {
      router_ = zmq::socket_t(context_, zmq::socket_type::router);
      router_.set(zmq::sockopt::router_mandatory, true);
      router_.set(zmq::sockopt::linger, 1000);
      router_.set(zmq::sockopt::maxmsgsize, static_cast<int64_t>(c.limits().max_message_bytes()));
      router_.set(zmq::sockopt::rcvhwm, 100000);
      router_.set(zmq::sockopt::sndhwm, 100000);
      router_.set(zmq::sockopt::ipv6, true);
      encrypted_ = !c.curve().secret_key_file().empty();
      if (encrypted_) {
        SLUICE_ASSIGN_OR_RETURN(const CurveKeys keys, ReadSecretKey(c.curve().secret_key_file()));
        router_.set(zmq::sockopt::curve_server, true);
        router_.set(zmq::sockopt::curve_secretkey, keys.secret);
      }
      SLUICE_ASSIGN_OR_RETURN(allow_list_, AllowList::Start(context_, c.curve().allow_file()));
      router_.set(zmq::sockopt::zap_domain, "sluice");
      SLUICE_ASSIGN_OR_RETURN(refusals_, Refusals::Watch(context_, router_));
      for (const std::string& e : c.endpoint()) {
        if (e == DefaultEndpoint()) SLUICE_RETURN_IF_ERROR(MakeDefaultFolder());
        SLUICE_RETURN_IF_ERROR(CheckUnused(e));
        try {
          router_.bind(e);
        } catch (const zmq::error_t& error) {
          return absl::UnavailableError(absl::StrCat("endpoint ", e, ": ", error.what(),
                                                     "; wanted tcp://host:port or ipc:///path"));
        }
        endpoints_.push_back(ReadableEndpoint(router_.get(zmq::sockopt::last_endpoint)));
      }
      if (c.http().port() > 0) router_.bind(kInproc);
    } catch (const zmq::error_t& error) {
      return absl::UnavailableError(absl::StrCat("zeromq: ", error.what()));
    }
    if (c.http().port() > 0) {
      // The page's requests come in as a client's; with encryption on, inproc needs none.
      SLUICE_ASSIGN_OR_RETURN(
          http_, HttpServer::Start({c.http().host(),
                                    static_cast<int>(c.http().port()),
                                    {c.http().allow_host().begin(), c.http().allow_host().end()}},
                                   context_, kInproc));
    }
    started_ = SteadySeconds();
    return absl::OkStatus();
  }

  absl::Status Run() override {
    Log("serving", {{"endpoint", endpoints_.empty() ? "" : endpoints_[0]},
                    {"store", std::string(store_->name())}});
    try {
      Serve();
    } catch (const zmq::error_t& e) {
      return absl::InternalError(absl::StrCat("zeromq: ", e.what()));
    }
    Log("stopped", {{"decisions", absl::StrCat(counters_.decisions)},
                    {"feedbacks", absl::StrCat(counters_.feedbacks)}});
    return absl::OkStatus();
  }
  void Stop() override {
    stop_ = true;
    Wake();
  }
  void Reload() override {
    reload_ = true;
    Wake();
  }
  const std::vector<std::string>& endpoints() const override { return endpoints_; }
  int http_port() const override { return http_ != nullptr ? http_->port() : 0; }

 private:
  static constexpr char kInproc[] = "inproc://sluice-http";
  struct Peer {  // where an answer goes
    std::string identity;
    bool delimiter = false;  // a REQ socket's empty frame
  };
  struct Explained {
    uint64_t id = 0, snapshot = 0;
    int64_t unix_ms = 0;
    std::shared_ptr<const PolicySet> policies;  // of the decision
    int policy = 0;
    double propensity = 0;
    std::vector<double> intent;
    AgentTrace trace;
  };
  struct Bucket {
    double tokens = 0, at = 0;
  };
  struct Counters {
    uint64_t decisions = 0, feedbacks = 0, duplicates = 0, rejected = 0, malformed = 0,
             overloaded = 0, rate_limited = 0, undeliverable = 0, refused = 0, reloads = 0,
             failed_reloads = 0;
    double quality = 0, cost = 0;
  };
  struct Path {
    std::vector<std::string> agents;
    uint64_t chosen = 0;
  };
  struct Shadowed {
    uint64_t id;
    std::vector<double> intent;
    std::vector<Block> blocked;
    std::vector<float> features;
    AgentDecision executed;
  };
  struct Second {
    int64_t unix_ms = 0;
    uint32_t decisions = 0, feedbacks = 0, outcomes = 0;
    double quality = 0, cost = 0, latency = 0;
  };

  void Wake() {
    const uint64_t one = 1;
    if (write(wake_, &one, sizeof one) < 0) {  // full: it is awake already
    }
  }
  void Log(absl::string_view event,
           std::initializer_list<std::pair<absl::string_view, std::string>> fields) {
    if (!options_.log) return;
    std::string line = absl::StrCat("{\"unix_ms\":", UnixMs(), ",\"event\":", JsonText(event));
    for (const auto& [k, v] : fields) absl::StrAppend(&line, ",", JsonText(k), ":", JsonText(v));
    options_.log(line + "}");
  }
  // What settings decide besides policies, which the learner swaps.
  absl::Status Adopt() {
    const v1::ServerConfig& c = settings_.config;
    breaker_ = {static_cast<int>(c.breaker().failures()), c.breaker().cooldown_s(),
                static_cast<int>(c.breaker().probes())};
    budgets_.clear();
    agents_.clear();
    for (const v1::StageConfig& s : c.stage()) {
      for (const v1::AgentConfig& a : s.agent()) budgets_.push_back(a.budget_usd_per_hour());
    }
    const AgentGraph& g = *settings_.policies->graph;
    for (int64_t a = 0; a < g.num_agents(); ++a)
      agents_.emplace(g.agent(a).id, static_cast<int32_t>(a));
    for (int i = 0; i < g.num_stages(); ++i) first_agent_[i] = g.first_agent(i);
    active_ = c.active_policy();
    experiment_.Adopt(c.experiment());
    if (intent_path_ != c.intent().model()) {
      intent_.reset();
      if (!c.intent().model().empty()) {
        SLUICE_ASSIGN_OR_RETURN(intent_, LoadIntentModel(c.intent().model(), g.tasks));
      }
      intent_path_ = c.intent().model();
    }
    explained_.resize(c.limits().explained_decisions());
    return absl::OkStatus();
  }
  void DoReload() {
    auto fail = [&](const std::string& why) {
      ++counters_.failed_reloads;
      reload_error_ = why;
      Log("reload refused; the old configuration stays", {{"why", why}});
    };
    if (options_.config_path.empty()) return fail("there is no configuration file to read again");
    absl::StatusOr<ServerSettings> next = LoadSettings(options_.config_path);
    if (!next.ok()) return fail(std::string(next.status().message()));
    if (next->policies->fingerprint != settings_.policies->fingerprint)
      return fail("tasks or agents changed: that needs a restart");
    const v1::ServerConfig &was = settings_.config, &now = next->config;
    if (now.state().SerializeAsString() != was.state().SerializeAsString() ||
        now.curve().SerializeAsString() != was.curve().SerializeAsString() ||
        now.http().SerializeAsString() != was.http().SerializeAsString() ||
        now.learning().SerializeAsString() != was.learning().SerializeAsString() ||
        !std::equal(now.endpoint().begin(), now.endpoint().end(), was.endpoint().begin(),
                    was.endpoint().end())) {
      return fail("endpoint, state, learning, curve or http changed: that needs a restart");
    }
    if (Reweights(was.experiment(), now.experiment()))
      return fail(absl::StrCat("experiment '", now.experiment().name(),
                               "': its arms or weights changed while it runs, which would move its "
                               "units; give the new split another name"));
    ServerSettings before = std::exchange(settings_, *std::move(next));
    if (absl::Status status = Adopt(); !status.ok()) {
      settings_ = std::move(before);
      intent_path_ = "?";  // whatever was half loaded is loaded again
      (void)Adopt();
      return fail(std::string(status.message()));
    }
    learner_->Replace(settings_.policies, settings_.config.experiment());
    ++counters_.reloads;
    reload_error_.clear();
    Log("reloaded", {{"file", options_.config_path}});
  }

  void Serve() {
    double tick = 0;
    bool draining = false;
    double drain_until = 0;
    zmq::pollitem_t items[] = {{router_.handle(), 0, ZMQ_POLLIN, 0},
                               {nullptr, wake_, ZMQ_POLLIN, 0}};
    for (;;) {
      zmq::poll(items, 2, std::chrono::milliseconds(draining ? 20 : 200));
      now_ = SteadySeconds();
      if (items[1].revents != 0) {
        uint64_t ignored;
        if (read(wake_, &ignored, sizeof ignored) <
            0) {  // somebody else's wake-up was taken already
        }
      }
      if (reload_.exchange(false)) DoReload();
      if (stop_ && !draining) {
        draining = true;
        ready_ = false;
        drain_until = now_ + 10;
        Log("draining", {});
      }
      int taken = 0;
      for (; taken < kDrainBatch && TakeOne(); ++taken) {
      }
      AnswerFeedback();
      if (now_ - tick >= 1) {
        Tick();
        tick = now_;
      }
      if (draining && taken == 0 && (learner_->queued() == 0 || now_ > drain_until)) {
        AnswerFeedback();
        const absl::Status saved = learner_->SaveNow();
        NoteStoppedArms();
        if (!saved.ok()) Log("snapshot failed", {{"why", std::string(saved.message())}});
        return;
      }
    }
  }
  void Tick() {
    // Seconds without traffic are points too, so the page's time axis is honest.
    second_.unix_ms = UnixMs();
    history_.push_back(second_);
    second_ = {};
    if (history_.size() > 600) history_.pop_front();
    const std::string trouble = learner_->trouble();
    if (trouble != trouble_) {
      Log(trouble.empty() ? "feedback is stored again" : "feedback cannot be stored",
          {{"why", trouble}});
      trouble_ = trouble;
    }
    if (buckets_.size() > kMaxClients) buckets_.clear();
    allow_list_->Refresh();
    NoteRefusals();
    NoteStoppedArms();
  }
  void NoteRefusals() {
    const Refusals::Seen seen = refusals_->Take();
    if (seen.count == 0) return;
    counters_.refused += seen.count;
    Log("connections refused", {{"count", absl::StrCat(seen.count)}, {"last", seen.last}});
  }
  void NoteStoppedArms() {
    Published<LearnedState>::Guard state(learner_->published(), 0);
    if (state->stopped == stopped_) return;
    for (size_t a = 0; a < state->stopped.size(); ++a) {
      if (state->stopped[a] != 0 && !(a < stopped_.size() && stopped_[a] != 0))
        Log("experiment arm stopped", {{"arm", absl::StrCat(a)}, {"why", learner_->WhyStopped(a)}});
    }
    stopped_ = state->stopped;
  }

  // One message off the socket, and its answer. False: none was there.
  bool TakeOne() {
    zmq::message_t frame;
    if (!router_.recv(frame, zmq::recv_flags::dontwait)) return false;
    Peer& peer = peer_;
    peer.identity.assign(frame.data<char>(), frame.size());
    peer.delimiter = false;
    int parts = 0;
    while (router_.get(zmq::sockopt::rcvmore)) {
      (void)router_.recv(frame, zmq::recv_flags::none);
      if (++parts == 1 && frame.size() == 0 && router_.get(zmq::sockopt::rcvmore)) {
        peer.delimiter = true;
        parts = 0;
      }
    }
    arena_.Reset();
    auto* response = google::protobuf::Arena::CreateMessage<v1::Response>(&arena_);
    response->set_version(kWireVersion);
    auto* request = google::protobuf::Arena::CreateMessage<v1::Request>(&arena_);
    if (parts != 1 || !request->ParseFromArray(frame.data(), static_cast<int>(frame.size()))) {
      ++counters_.malformed;
      SetError(response->mutable_error(), v1::INVALID_ARGUMENT,
               parts != 1 ? absl::StrCat("message has ", parts, " frames, wanted 1")
                          : absl::StrCat(frame.size(), " bytes are no sluice.v1.Request"));
      Send(peer, *response);
      return true;
    }
    response->set_request_id(request->request_id());
    bool later = false;
    const std::string user = encrypted_ ? Property(frame, "User-Id") : "";
    if (request->version() != kWireVersion) {
      SetError(response->mutable_error(), v1::UNIMPLEMENTED,
               absl::StrCat("request of version ", request->version(), ", this server speaks ",
                            kWireVersion));
    } else if (request->deadline_unix_ms() != 0 && UnixMs() > request->deadline_unix_ms()) {
      SetError(response->mutable_error(), v1::DEADLINE_EXCEEDED,
               absl::StrCat("the deadline passed ", UnixMs() - request->deadline_unix_ms(),
                            " ms before the request was read"));
    } else if (!user.empty() && !allow_list_->Holds(user)) {
      ++counters_.refused;
      SetError(response->mutable_error(), v1::UNAUTHENTICATED,
               "this key is no longer on the allow-list");
    } else if (!Allowed(ClientOf(user, frame, peer))) {
      ++counters_.rate_limited;
      SetError(response->mutable_error(), v1::RATE_LIMITED,
               absl::StrCat("more than ", settings_.config.limits().requests_per_s(),
                            " requests a second"));
    } else {
      try {
        later = Dispatch(peer, *request, *response);
      } catch (const std::exception& e) {  // no request may end the service
        response->clear_body();
        SetError(response->mutable_error(), v1::INTERNAL, e.what());
        Log("request failed", {{"why", e.what()}});
      }
    }
    if (!later) Send(peer, *response);
    RunShadows();
    return true;
  }
  // A property that the connection gave its messages; empty where there is none, as inproc has.
  static std::string Property(zmq::message_t& frame, const char* name) {
    const char* text = zmq_msg_gets(frame.handle(), name);
    return text != nullptr ? text : "";
  }
  // Whose requests count together: of a key, or else of an address, which reconnecting keeps.
  static std::string ClientOf(const std::string& user, zmq::message_t& frame, const Peer& peer) {
    if (!user.empty()) return user;
    const std::string address = Property(frame, "Peer-Address");
    return address.empty() ? peer.identity : address;
  }
  bool Allowed(const std::string& client) {
    const double rate = settings_.config.limits().requests_per_s();
    if (rate <= 0) return true;
    const double burst = settings_.config.limits().burst();
    Bucket& b = buckets_.try_emplace(client, Bucket{burst, now_}).first->second;
    b.tokens = std::min(burst, b.tokens + rate * (now_ - b.at));
    b.at = now_;
    if (b.tokens < 1) return false;
    b.tokens -= 1;
    return true;
  }
  void Send(const Peer& peer, const v1::Response& response) {
    try {
      zmq::message_t body(response.ByteSizeLong());
      response.SerializeWithCachedSizesToArray(body.data<uint8_t>());
      auto part = [&](zmq::message_t& m, bool more) {
        return router_
            .send(m, more ? zmq::send_flags::sndmore | zmq::send_flags::dontwait
                          : zmq::send_flags::dontwait)
            .has_value();
      };
      zmq::message_t identity(peer.identity.data(), peer.identity.size()), empty;
      if (!part(identity, true)) {
        ++counters_.undeliverable;  // the peer does not read: its queue is full
        return;
      }
      if (peer.delimiter) part(empty, true);
      part(body, false);
    } catch (const zmq::error_t& e) {
      if (e.num() != EHOSTUNREACH) throw;
      ++counters_.undeliverable;  // the peer has gone
    }
  }

  // True: the answer comes later.
  bool Dispatch(const Peer& peer, const v1::Request& q, v1::Response& r) {
    switch (q.body_case()) {
      case v1::Request::kRoute:
        Route(q.route(), r);
        return false;
      case v1::Request::kFeedback:
        return Feedback(peer, q, r);
      case v1::Request::kExplain:
        Explain(q.explain(), r);
        return false;
      case v1::Request::kStats:
        Stats(*r.mutable_stats());
        return false;
      case v1::Request::kListPolicies:
        ListPolicies(*r.mutable_list_policies());
        return false;
      case v1::Request::kSetPolicy:
        SetPolicy(q.set_policy(), r);
        return false;
      case v1::Request::kSnapshot:
        Snapshot(q.snapshot(), r);
        return false;
      case v1::Request::kHeatMap:
        HeatMap(*r.mutable_heat_map());
        return false;
      case v1::Request::kHistory:
        History(*r.mutable_history());
        return false;
      case v1::Request::kExperiment:
        if (!experiment_.running() && experiment_.shadows().empty()) {
          SetError(r.mutable_error(), v1::NOT_FOUND,
                   "no experiment is configured (experiment { name: } or { shadow: })");
          return false;
        }
        ReportExperiment(*r.mutable_experiment());
        return false;
      case v1::Request::kHealth:
        r.mutable_health()->set_ready(ready_);
        r.mutable_health()->set_version(SLUICE_VERSION);
        r.mutable_health()->set_state(std::string(store_->name()));
        return false;
      case v1::Request::BODY_NOT_SET:
        break;
    }
    SetError(r.mutable_error(), v1::UNIMPLEMENTED,
             "the request has no body that this server knows");
    return false;
  }

  uint64_t NextId() {
    if (ids_left_ == 0) {
      uint64_t lease = learner_->TakeLease();
      if (lease == 0) {  // the learner is behind: ask ourselves
        const absl::StatusOr<uint64_t> asked = store_->LeaseIds(Learner::kLease);
        if (!asked.ok()) return 0;
        lease = *asked;
      }
      next_id_ = lease;
      ids_left_ = Learner::kLease;
    }
    --ids_left_;
    return next_id_++;
  }
  // The query's tasks and what may not be chosen, into intent_now_ and blocked_now_.
  absl::Status Understand(const v1::Query& q, const AgentGraph& g) {
    const size_t tasks = g.tasks.size();
    intent_now_.assign(tasks, 0.0);
    if (!q.task().empty()) {
      const auto at = std::find(g.tasks.begin(), g.tasks.end(), q.task());
      if (at == g.tasks.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat("no task '", q.task(), "'; known: ", absl::StrJoin(g.tasks, ", ")));
      }
      intent_now_[at - g.tasks.begin()] = 1;
    } else if (!q.intent().empty()) {
      intent_now_.assign(q.intent().begin(), q.intent().end());
    } else if (!q.text().empty()) {
      if (intent_ == nullptr)
        return absl::FailedPreconditionError(
            "the query has a text, but the server has no intent model (intent { model: })");
      SLUICE_RETURN_IF_ERROR(intent_->Infer(q.text(), absl::MakeSpan(intent_now_)));
    } else {
      intent_now_.assign(tasks, 1.0 / static_cast<double>(tasks));
    }
    if (!(q.max_cost_usd() >= 0) || std::isinf(q.max_cost_usd()))
      return absl::InvalidArgumentError(absl::StrCat(
          "max_cost_usd: ", q.max_cost_usd(), "; allowed: 0 (no limit) or a finite sum above it"));
    for (float x : q.features()) {
      if (!std::isfinite(x))
        return absl::InvalidArgumentError(absl::StrCat("features: ", x, " is no finite number"));
    }
    blocked_now_.clear();
    if (health_.any_blocked() || !q.exclude().empty() || q.max_cost_usd() > 0) {
      blocked_now_.assign(health_.blocked().begin(), health_.blocked().end());
      for (const std::string& id : q.exclude()) {
        const auto at = agents_.find(id);
        if (at == agents_.end())
          return absl::InvalidArgumentError(absl::StrCat("exclude: no agent '", id, "'"));
        blocked_now_[at->second] = Block::kCaller;
      }
      if (q.max_cost_usd() > 0) {
        for (size_t a = 0; a < blocked_now_.size(); ++a) {
          if (g.agent(static_cast<int64_t>(a)).cost_usd > q.max_cost_usd())
            blocked_now_[a] = Block::kCapability;
        }
      }
    }
    if (q.features_size() > 1024)
      return absl::InvalidArgumentError(absl::StrCat(q.features_size(), " features, allowed 1024"));
    return absl::OkStatus();
  }

  void Route(const v1::RouteRequest& request, v1::Response& r) {
    if (!ready_) return SetError(r.mutable_error(), v1::UNAVAILABLE, "the server drains");
    if (!FitsBatch(request.queries_size(), "queries", r)) return;
    Published<LearnedState>::Guard state(learner_->published(), 0);
    const int everyone = ActivePolicy(*state->policies);
    health_.Refresh(breaker_, budgets_, now_);
    epoch_ = std::max(epoch_, state->newest_epoch);
    v1::RouteResponse& out = *r.mutable_route();
    out.mutable_decisions()->Reserve(request.queries_size());
    auto before = std::chrono::steady_clock::now();
    for (const v1::Query& q : request.queries()) {
      v1::Decision& d = *out.add_decisions();
      const absl::Status status = Decide(q, *state, everyone, d);
      if (!status.ok()) {
        SetError(d.mutable_error(), CodeOf(status.code()), status.message());
        continue;
      }
      const auto after = std::chrono::steady_clock::now();
      decide_.Add(std::chrono::duration_cast<std::chrono::nanoseconds>(after - before).count());
      before = after;
    }
  }
  // One query: which policy it gets, what that decides, what is kept of it and what the caller
  // hears.
  absl::Status Decide(const v1::Query& q, const LearnedState& state, int everyone,
                      v1::Decision& d) {
    const uint64_t id = NextId();
    const int active = PolicyFor(q, state, everyone);
    if (id == 0) return absl::UnavailableError("the store leases no ids");
    SLUICE_RETURN_IF_ERROR(Understand(q, *state.policies->graph));

    const PolicySet::Policy& policy = state.policies->policies[active];
    Explained& slot = explained_[id % explained_.size()];
    slot.trace.clear();
    slot.id = 0;
    AgentRequest ask;
    ask.id = id;
    ask.intent = intent_now_;
    ask.live = health_.live();
    ask.blocked = blocked_now_;
    ask.features = absl::MakeConstSpan(q.features().data(), q.features_size());
    AgentDecision decision;
    SLUICE_RETURN_IF_ERROR(
        policy.router->Run(*policy.plan, state.of[active].state, ask, decision, &slot.trace));

    Keep(q, id, active, decision, state, slot);
    Tell(id, policy, decision, *state.policies->graph, d);
    Count(id, decision, *state.policies->graph);
    return absl::OkStatus();
  }
  // The policy of the experiment's arm that the query's unit is in, or everyone's. Notes unit and
  // arm in record_.
  int PolicyFor(const v1::Query& q, const LearnedState& state, int everyone) {
    record_.unit = q.unit().empty() ? 0 : std::max<uint64_t>(1, HashText(q.unit()));
    record_.experiment = 0;
    record_.arm = 0;
    const bool known = experiment_.id() == state.experiment;  // not so just after a reload
    if (!experiment_.running() || q.unit().empty() || !known) return everyone;
    const Experiment::Assigned to = experiment_.Assign(q.unit(), state.stopped);
    const int index = state.policies->Find(*to.policy);
    if (index < 0) return everyone;
    if (to.counts) {
      record_.experiment = experiment_.id();
      record_.arm = static_cast<uint8_t>(to.arm);
    }
    return index;
  }
  // What `explain` and the outcome will want to know, into the slot and record_.
  void Keep(const v1::Query& q, uint64_t id, int active, const AgentDecision& decision,
            const LearnedState& state, Explained& slot) {
    slot.id = id;
    slot.snapshot = state.version;
    slot.policies = state.policies;
    slot.policy = active;
    slot.propensity = decision.propensity;
    slot.intent = intent_now_;
    slot.unix_ms = UnixMs();

    record_.id = id;
    record_.graph = state.policies->fingerprint;
    record_.policy = static_cast<uint32_t>(active);
    record_.epoch = epoch_;
    record_.propensity = decision.propensity;
    record_.intent = intent_now_;
    record_.path.assign(decision.path.begin(), decision.path.begin() + decision.stages);
    record_.features.assign(q.features().begin(), q.features().end());
  }
  void Tell(uint64_t id, const PolicySet::Policy& policy, const AgentDecision& decision,
            const AgentGraph& graph, v1::Decision& d) {
    receipts_->Make(record_, *d.mutable_receipt());
    d.set_id(id);
    d.set_policy(policy.name);
    d.set_propensity(decision.propensity);
    for (int s = 0; s < decision.stages; ++s) d.add_agents(graph.agent(decision.path[s]).id);
  }
  void Count(uint64_t id, const AgentDecision& decision, const AgentGraph& graph) {
    for (int s = 0; s < decision.stages; ++s) health_.Chosen(decision.path[s], breaker_);
    ++counters_.decisions;
    ++second_.decisions;
    CountPath(decision, graph);
    if (!experiment_.shadows().empty())
      shadowed_.push_back({id, intent_now_, blocked_now_, record_.features, decision});
    CountForEpoch();
  }
  // What shadow policies would have done with the decisions just sent. Their caller has its answer
  // already.
  void RunShadows() {
    if (shadowed_.empty()) return;
    Published<LearnedState>::Guard state(learner_->published(), 0);
    for (Experiment::Shadow& shadow : experiment_.shadows()) {
      const int index = state->policies->Find(shadow.policy);
      if (index < 0) continue;
      const PolicySet::Policy& policy = state->policies->policies[index];
      for (const Shadowed& s : shadowed_) {
        AgentRequest ask;
        ask.id = s.id;
        ask.intent = s.intent;
        ask.blocked = s.blocked;
        ask.features = s.features;
        ask.live = health_.live();
        AgentDecision d;
        if (!policy.router->Run(*policy.plan, state->of[index].state, ask, d, nullptr).ok())
          continue;
        ++shadow.decisions;
        shadow.same +=
            std::equal(d.path.begin(), d.path.begin() + d.stages, s.executed.path.begin());
      }
    }
    shadowed_.clear();
  }
  void ReportExperiment(v1::ExperimentResponse& out) {
    learner_->ReportExperiment(out);
    for (const Experiment::Shadow& s : experiment_.shadows()) {
      v1::ShadowResult& r = *out.add_shadows();
      r.set_policy(s.policy);
      r.set_decisions(s.decisions);
      r.set_same(s.same);
    }
  }
  void CountForEpoch() {
    if (++decisions_in_epoch_ >= settings_.config.learning().epoch_decisions()) {
      decisions_in_epoch_ = 0;
      ++epoch_;
    }
  }
  // Traffic by path. A graph may have more paths than are worth counting: beyond kMaxPaths new ones
  // are left out.
  void CountPath(const AgentDecision& d, const AgentGraph& g) {
    uint64_t key = 0;
    for (int s = 0; s < d.stages; ++s)
      key = key * (kMaxStageAgents + 1) + static_cast<uint64_t>(d.path[s] - first_agent_[s]) + 1;
    auto at = paths_.find(key);
    if (at == paths_.end()) {
      if (paths_.size() >= kMaxPaths) return;
      at = paths_.emplace(key, Path{}).first;
      for (int s = 0; s < d.stages; ++s) at->second.agents.push_back(g.agent(d.path[s]).id);
    }
    ++at->second.chosen;
  }
  int ActivePolicy(const PolicySet& set) const {
    const int i = set.Find(active_);  // -1: a reload has named one that the learner still restores
    return i < 0 ? 0 : i;
  }
  bool FitsBatch(int n, absl::string_view what, v1::Response& r) {
    const auto most = static_cast<int>(settings_.config.limits().max_batch());
    if (n > 0 && n <= most) return true;
    SetError(r.mutable_error(), v1::INVALID_ARGUMENT,
             absl::StrCat(n, " ", what, ", allowed 1 to ", most));
    return false;
  }

  bool Feedback(const Peer& peer, const v1::Request& q, v1::Response& r) {
    const v1::FeedbackRequest& request = q.feedback();
    if (!FitsBatch(request.outcomes_size(), "outcomes", r)) return false;
    auto job = std::make_unique<FeedbackJob>();
    const auto n = static_cast<size_t>(request.outcomes_size());
    job->client = peer.identity;
    job->delimiter = peer.delimiter;
    job->request_id = q.request_id();
    job->results.resize(n);
    job->reasons.resize(n);
    job->ids.resize(n);
    for (int i = 0; i < request.outcomes_size(); ++i) {
      const v1::Outcome& o = request.outcomes(i);
      absl::StatusOr<OutcomeRecord> record = Check(o);
      if (!record.ok()) {
        ++counters_.rejected;
        job->reasons[i] = std::string(record.status().message());
        continue;
      }
      job->ids[i] = record->decision.id;
      job->slot.push_back(i);
      std::vector<FeedbackJob::Report>& reports = job->reports.emplace_back();
      for (const v1::AgentReport& a : o.agents())
        reports.push_back({agents_.at(a.agent()), a.failed(), a.latency_s()});
      job->outcomes.push_back(*std::move(record));
    }
    if (!learner_->Submit(job)) {
      ++counters_.overloaded;
      SetError(r.mutable_error(), v1::OVERLOADED,
               absl::StrCat("the feedback queue holds ", learner_->queued(),
                            " outcomes; nothing was kept, send again"));
      return false;
    }
    return true;
  }
  // The decision that offline data stands for. Its id comes from its key, apart from the server's
  // own by the highest bit.
  absl::StatusOr<DecisionRecord> FromLabelled(const v1::Labelled& l) {
    const AgentGraph& g = *settings_.policies->graph;
    if (l.key().empty()) return absl::InvalidArgumentError("labelled: no key");
    if (l.agents_size() != g.num_stages()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "labelled: ", l.agents_size(), " agents, wanted one a stage = ", g.num_stages()));
    }
    DecisionRecord d;
    double uniform = 1;
    for (int s = 0; s < g.num_stages(); ++s) {
      const auto at = agents_.find(l.agents(s));
      const int64_t first = g.first_agent(s);
      if (at == agents_.end() || at->second < first || at->second >= first + g.stage_size(s)) {
        return absl::InvalidArgumentError(
            absl::StrCat("labelled: stage ", s, " has no agent '", l.agents(s), "'"));
      }
      d.path.push_back(at->second);
      uniform /= g.stage_size(s);
    }
    v1::Query q;
    q.set_task(l.task());
    *q.mutable_intent() = l.intent();
    *q.mutable_features() = l.features();
    SLUICE_RETURN_IF_ERROR(Understand(q, g));
    double sum = 0;
    for (double w : intent_now_) sum += w >= 0 ? w : NAN;
    if (intent_now_.size() != g.tasks.size() || !(std::abs(sum - 1) < 1e-6)) {
      return absl::InvalidArgumentError(absl::StrCat("labelled: intent has ", intent_now_.size(),
                                                     " entries that sum to ", sum, ", wanted ",
                                                     g.tasks.size(), " and 1"));
    }
    if (!(l.propensity() >= 0 && l.propensity() <= 1)) {
      return absl::InvalidArgumentError(
          absl::StrCat("labelled: propensity ", l.propensity(), " is outside [0, 1]"));
    }
    d.id = HashText(l.key()) | (uint64_t{1} << 63);
    d.graph = settings_.policies->fingerprint;
    d.epoch = epoch_;
    d.intent = intent_now_;
    d.propensity = l.propensity() > 0 ? l.propensity() : uniform;
    d.features.assign(l.features().begin(), l.features().end());
    CountForEpoch();
    return d;
  }
  absl::StatusOr<OutcomeRecord> Check(const v1::Outcome& o) {
    OutcomeRecord record;
    if (o.receipt().empty() && o.has_labelled()) {
      SLUICE_ASSIGN_OR_RETURN(record.decision, FromLabelled(o.labelled()));
    } else {
      SLUICE_ASSIGN_OR_RETURN(record.decision, receipts_->Open(o.receipt()));
    }
    if (!(o.quality() >= 0 && o.quality() <= 1))
      return absl::InvalidArgumentError(
          absl::StrCat("quality ", o.quality(), " is outside [0, 1]"));
    for (double x : {o.cost_usd(), o.latency_s()}) {
      if (!(x >= 0 && x <= 1e6))
        return absl::InvalidArgumentError(
            absl::StrCat("cost_usd and latency_s must be in [0, 1e6], got ", x));
    }
    for (const v1::AgentReport& a : o.agents()) {
      if (agents_.find(a.agent()) == agents_.end())
        return absl::InvalidArgumentError(absl::StrCat("no agent '", a.agent(), "'"));
      if (!(a.latency_s() >= 0 && a.latency_s() <= 1e6))
        return absl::InvalidArgumentError(absl::StrCat("agent '", a.agent(), "': latency_s ",
                                                       a.latency_s(), " is outside [0, 1e6]"));
    }
    record.quality = o.quality();
    record.cost_usd = o.cost_usd();
    record.latency_s = o.latency_s();
    record.accepted =
        o.has_accepted() ? o.accepted() : o.quality() >= settings_.config.learning().gate();
    return record;
  }
  // What a new outcome says of its agents' health: reports where there are any, else a share of the
  // whole.
  void Notice(const OutcomeRecord& o, const std::vector<FeedbackJob::Report>& reports) {
    ++second_.outcomes;
    ++noticed_;
    second_.quality += o.quality;
    second_.cost += o.cost_usd;
    second_.latency += o.latency_s;
    counters_.quality += o.quality;
    counters_.cost += o.cost_usd;
    const bool labelled = (o.decision.id >> 63) != 0;  // says nothing of how agents do now
    if (labelled || o.decision.graph != settings_.policies->fingerprint) return;
    const double share = 1.0 / static_cast<double>(std::max<size_t>(1, o.decision.path.size()));
    for (int32_t a : o.decision.path) {
      bool failed = false;
      double latency = reports.empty() ? o.latency_s * share : 0;
      for (const FeedbackJob::Report& r : reports) {
        if (r.agent == a) {
          failed = r.failed;
          latency = r.latency_s;
        }
      }
      health_.Ended(a, failed, latency, o.quality, o.cost_usd * share, breaker_, now_);
    }
  }
  void AnswerFeedback() {
    for (const std::unique_ptr<FeedbackJob>& job : learner_->TakeDone()) {
      arena_.Reset();
      auto* response = google::protobuf::Arena::CreateMessage<v1::Response>(&arena_);
      response->set_version(kWireVersion);
      response->set_request_id(job->request_id);
      if (!job->status.ok()) {
        ++counters_.overloaded;
        SetError(response->mutable_error(), v1::OVERLOADED,
                 absl::StrCat("nothing was kept, send again: ", job->status.message()));
      } else {
        for (size_t i = 0; i < job->results.size(); ++i) {
          v1::FeedbackResult& result = *response->mutable_feedback()->add_results();
          result.set_decision_id(job->ids[i]);
          result.set_status(static_cast<v1::FeedbackResult::Status>(job->results[i]));
          result.set_reason(job->reasons[i]);
          counters_.feedbacks += job->results[i] == FeedbackJob::Result::kApplied;
          counters_.duplicates += job->results[i] == FeedbackJob::Result::kDuplicate;
          second_.feedbacks += job->results[i] == FeedbackJob::Result::kApplied;
        }
        for (size_t i = 0; i < job->outcomes.size(); ++i) {
          if (job->results[job->slot[i]] == FeedbackJob::Result::kApplied)
            Notice(job->outcomes[i], job->reports[i]);
        }
      }
      Send({job->client, job->delimiter}, *response);
    }
  }

  static void AddStages(const AgentGraph& g, const AgentTrace& trace,
                        google::protobuf::RepeatedPtrField<v1::StageExplanation>* out) {
    for (const AgentCandidate& c : trace) {
      while (out->size() <= c.stage) out->Add();
      v1::Candidate& to = *out->Mutable(c.stage)->add_candidates();
      to.set_agent(g.agent(c.agent).id);
      to.set_tau(c.tau);
      to.set_eta(c.eta);
      to.set_p(c.p);
      to.set_blocked(BlockName(c.block));
      to.set_chosen(c.chosen);
    }
  }
  void Explain(const v1::ExplainRequest& q, v1::Response& r) {
    const Explained& e = explained_[q.decision_id() % explained_.size()];
    if (q.decision_id() == 0 || e.id != q.decision_id()) {
      return SetError(r.mutable_error(), v1::NOT_FOUND,
                      absl::StrCat("decision ", q.decision_id(), " is not among the last ",
                                   explained_.size(), " of this server"));
    }
    const PolicySet& set = *e.policies;
    v1::ExplainResponse& out = *r.mutable_explain();
    out.set_decision_id(e.id);
    out.set_policy(set.policies[e.policy].name);
    out.set_spec(set.policies[e.policy].spec);
    out.set_snapshot(e.snapshot);
    out.set_propensity(e.propensity);
    out.set_unix_ms(e.unix_ms);
    for (size_t t = 0; t < e.intent.size(); ++t) {
      v1::TaskWeight& w = *out.add_intent();
      w.set_task(set.graph->tasks[t]);
      w.set_weight(e.intent[t]);
    }
    AddStages(*set.graph, e.trace, out.mutable_stages());
  }
  void Stats(v1::StatsResponse& s) {
    s.set_decisions(counters_.decisions);
    s.set_feedbacks(counters_.feedbacks);
    s.set_duplicates(counters_.duplicates);
    s.set_rejected(counters_.rejected);
    s.set_malformed(counters_.malformed);
    s.set_overloaded(counters_.overloaded);
    s.set_rate_limited(counters_.rate_limited);
    s.set_undeliverable(counters_.undeliverable);
    s.set_refused(counters_.refused);
    s.set_reloads(counters_.reloads);
    s.set_failed_reloads(counters_.failed_reloads);
    s.set_last_reload_error(reload_error_);
    s.set_uptime_s(now_ - started_);
    s.set_decide_p50_us(decide_.Quantile(0.5) / 1e3);
    s.set_decide_p99_us(decide_.Quantile(0.99) / 1e3);
    s.set_feedback_queue(learner_->queued());
    if (noticed_ > 0) {
      s.set_mean_quality(counters_.quality / static_cast<double>(noticed_));
      s.set_mean_cost_usd(counters_.cost / static_cast<double>(noticed_));
    }
    std::vector<const Path*> top;
    for (const auto& [key, path] : paths_) top.push_back(&path);
    std::sort(top.begin(), top.end(), [](const Path* a, const Path* b) {
      return a->chosen != b->chosen ? a->chosen > b->chosen : a->agents < b->agents;
    });
    for (size_t i = 0; i < std::min<size_t>(12, top.size()); ++i) {
      v1::PathStats& p = *s.add_paths();
      for (const std::string& id : top[i]->agents) p.add_agents(id);
      p.set_chosen(top[i]->chosen);
    }
    Published<LearnedState>::Guard state(learner_->published(), 0);
    s.set_policy(state->policies->policies[ActivePolicy(*state->policies)].name);
    s.set_snapshot(state->version);
    s.set_snapshot_age_s(now_ - static_cast<double>(state->published_ms) / 1e3);
    health_.Refresh(breaker_, budgets_, now_);
    const AgentGraph& g = *state->policies->graph;
    for (int64_t a = 0; a < g.num_agents(); ++a) {
      const AgentHealth::State& h = health_.state(a);
      v1::AgentStats& to = *s.add_agents();
      to.set_agent(g.agent(a).id);
      to.set_chosen(h.chosen);
      to.set_failures(h.failures);
      to.set_in_flight(health_.live()[a].load);
      to.set_latency_s(health_.live()[a].latency_s);
      to.set_quality(h.ended > 0 ? h.quality / static_cast<double>(h.ended) : 0);
      to.set_cost_usd(h.cost_usd);
      to.set_over_budget(h.over_budget);
      to.set_breaker(h.breaker == AgentHealth::Breaker::kClosed ? "closed"
                     : h.breaker == AgentHealth::Breaker::kOpen ? "open"
                                                                : "half-open");
    }
  }
  void ListPolicies(v1::ListPoliciesResponse& out) {
    Published<LearnedState>::Guard state(learner_->published(), 0);
    const int active = ActivePolicy(*state->policies);
    for (size_t i = 0; i < state->of.size(); ++i) {
      v1::PolicyInfo& p = *out.add_policies();
      p.set_name(state->policies->policies[i].name);
      p.set_spec(state->policies->policies[i].spec);
      p.set_active(static_cast<int>(i) == active);
      p.set_outcomes(static_cast<uint64_t>(state->of[i].outcomes));
      p.set_late(static_cast<uint64_t>(state->of[i].late));
    }
  }
  void SetPolicy(const v1::SetPolicyRequest& q, v1::Response& r) {
    if (settings_.policies->Find(q.name()) < 0) {
      return SetError(
          r.mutable_error(), v1::NOT_FOUND,
          absl::StrCat("no policy '", q.name(), "'; known: ", settings_.policies->Names()));
    }
    r.mutable_set_policy()->set_previous(active_);
    active_ = q.name();
    Log("policy set", {{"policy", active_}});
  }
  void Snapshot(const v1::SnapshotRequest& q, v1::Response& r) {
    if (const absl::Status status = learner_->SaveNow(); !status.ok())
      return SetError(r.mutable_error(), CodeOf(status.code()), status.message());
    Published<LearnedState>::Guard state(learner_->published(), 0);
    v1::SnapshotResponse& out = *r.mutable_snapshot();
    out.set_sequence(state->sequence);
    for (size_t i = 0; i < state->of.size(); ++i) {
      v1::PolicySnapshot& p = *out.add_policies();
      p.set_name(state->policies->policies[i].name);
      p.set_outcomes(static_cast<uint64_t>(state->of[i].outcomes));
      const std::vector<double>& numbers = state->of[i].state;
      p.set_digest(HashText(
          {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(double)}));
      p.set_late(static_cast<uint64_t>(state->of[i].late));
      if (q.include_state())
        p.mutable_state()->Add(state->of[i].state.begin(), state->of[i].state.end());
    }
  }
  void HeatMap(v1::HeatMapResponse& out) {
    Published<LearnedState>::Guard state(learner_->published(), 0);
    const PolicySet& set = *state->policies;
    const int active = ActivePolicy(set);
    const PolicySet::Policy& policy = set.policies[active];
    out.set_policy(policy.name);
    for (size_t t = 0; t < set.graph->tasks.size(); ++t) {
      std::vector<double> intent(set.graph->tasks.size(), 0.0);
      intent[t] = 1;
      AgentRequest ask;
      ask.id = t + 1;
      ask.intent = intent;
      ask.live = health_.live();
      AgentDecision decision;
      AgentTrace trace;
      v1::TaskHeat& heat = *out.add_tasks();
      heat.set_task(set.graph->tasks[t]);
      if (policy.router->Run(*policy.plan, state->of[active].state, ask, decision, &trace).ok()) {
        AddStages(*set.graph, trace, heat.mutable_stages());
      }
    }
  }
  void History(v1::HistoryResponse& out) {
    for (const Second& s : history_) {
      v1::HistoryPoint& p = *out.add_points();
      p.set_unix_ms(s.unix_ms);
      p.set_decisions(s.decisions);
      p.set_feedbacks(s.feedbacks);
      const double n = std::max<uint32_t>(1, s.outcomes);
      p.set_quality(s.quality / n);
      p.set_cost_usd(s.cost / n);
      p.set_latency_s(s.latency / n);
    }
  }

  ServerSettings settings_;
  Options options_;
  AgentHealth health_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Receipts> receipts_;
  std::unique_ptr<IntentModel> intent_;
  std::string intent_path_;
  zmq::context_t context_{1};
  bool encrypted_ = false;
  std::unique_ptr<AllowList> allow_list_;
  std::unique_ptr<Refusals> refusals_;
  zmq::socket_t router_;
  std::unique_ptr<Learner> learner_;
  std::unique_ptr<HttpServer> http_;
  std::vector<std::string> endpoints_;
  int wake_ = -1;
  std::atomic<bool> stop_{false}, reload_{false};

  // The serving thread's own.
  bool ready_ = true;
  double now_ = 0, started_ = 0;
  BreakerSettings breaker_;
  std::vector<double> budgets_;
  std::unordered_map<std::string, int32_t> agents_;
  std::unordered_map<std::string, Bucket> buckets_;
  std::string active_, reload_error_, trouble_;
  uint64_t next_id_ = 0, ids_left_ = 0, epoch_ = 1, noticed_ = 0;
  uint32_t decisions_in_epoch_ = 0;
  Experiment experiment_;
  std::vector<uint8_t> stopped_;  // arms, as last logged
  std::vector<Shadowed> shadowed_;
  std::vector<Explained> explained_;
  std::unordered_map<uint64_t, Path> paths_;
  std::array<int64_t, kMaxStages> first_agent_{};
  std::vector<double> intent_now_;
  std::vector<Block> blocked_now_;
  DecisionRecord record_;
  Peer peer_;
  Counters counters_;
  Second second_;
  std::deque<Second> history_;
  LatencyHistogram decide_;
  google::protobuf::Arena arena_;
};
}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Create(ServerSettings settings, Options options) {
  auto server = std::make_unique<ServerImpl>(std::move(settings), std::move(options));
  SLUICE_RETURN_IF_ERROR(server->Open());
  return server;
}
SLUICE_END_NAMESPACE
