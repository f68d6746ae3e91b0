#include "sluice/runtime/service/http.h"

#include <arpa/inet.h>
#include <google/protobuf/util/json_util.h>
#include <httplib.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <mutex>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/service/client.h"
#include "sluice/runtime/service/page.h"

SLUICE_BEGIN_NAMESPACE
namespace {
std::string Prometheus(const v1::StatsResponse& s) {
  std::string out;
  auto head = [&](absl::string_view name, absl::string_view type, absl::string_view help) {
    absl::StrAppend(&out, "# HELP ", name, " ", help, "\n# TYPE ", name, " ", type, "\n");
  };
  auto one = [&](absl::string_view name, absl::string_view type, absl::string_view help,
                 auto value) {
    head(name, type, help);
    absl::StrAppend(&out, name, " ", value, "\n");
  };
  one("sluice_decisions_total", "counter", "Paths chosen.", s.decisions());
  one("sluice_feedback_total", "counter", "Outcomes made durable.", s.feedbacks());
  one("sluice_feedback_duplicate_total", "counter", "Outcomes that were there already.",
      s.duplicates());
  one("sluice_feedback_rejected_total", "counter", "Outcomes refused with a reason.", s.rejected());
  one("sluice_malformed_total", "counter", "Messages that were no request.", s.malformed());
  one("sluice_overloaded_total", "counter", "Feedback requests answered OVERLOADED.",
      s.overloaded());
  one("sluice_rate_limited_total", "counter", "Requests answered RATE_LIMITED.", s.rate_limited());
  one("sluice_refused_total", "counter", "Connections and keys turned away.", s.refused());
  one("sluice_undeliverable_total", "counter", "Answers whose client was gone or did not read.",
      s.undeliverable());
  one("sluice_reload_total", "counter", "Configurations taken over.", s.reloads());
  one("sluice_reload_failed_total", "counter", "Configurations refused.", s.failed_reloads());
  one("sluice_feedback_queue", "gauge", "Outcomes not yet on disk.", s.feedback_queue());
  one("sluice_snapshot_age_seconds", "gauge", "Age of the state that decides.", s.snapshot_age_s());
  one("sluice_uptime_seconds", "gauge", "Since the server started.", s.uptime_s());
  head("sluice_decide_seconds", "summary", "Time of one decision inside the server.");
  absl::StrAppend(&out, "sluice_decide_seconds{quantile=\"0.5\"} ", s.decide_p50_us() * 1e-6,
                  "\nsluice_decide_seconds{quantile=\"0.99\"} ", s.decide_p99_us() * 1e-6, "\n");
  auto label = [](absl::string_view text) {
    std::string safe;
    for (char c : text) {
      if (c == '"' || c == '\\') safe.push_back('\\');
      safe.push_back(c == '\n' ? ' ' : c);
    }
    return absl::StrCat("{agent=\"", safe, "\"} ");
  };
  auto each = [&](absl::string_view name, absl::string_view type, absl::string_view help,
                  auto get) {
    head(name, type, help);
    for (const v1::AgentStats& a : s.agents())
      absl::StrAppend(&out, name, label(a.agent()), get(a), "\n");
  };
  each("sluice_agent_chosen_total", "counter", "Decisions for this agent.",
       [](const auto& a) { return a.chosen(); });
  each("sluice_agent_failures_total", "counter", "Calls that failed.",
       [](const auto& a) { return a.failures(); });
  each("sluice_agent_cost_usd_total", "counter", "Spent on this agent.",
       [](const auto& a) { return a.cost_usd(); });
  each("sluice_agent_in_flight", "gauge", "Decisions without an outcome, fading.",
       [](const auto& a) { return a.in_flight(); });
  each("sluice_agent_latency_seconds", "gauge", "Latency, smoothed.",
       [](const auto& a) { return a.latency_s(); });
  each("sluice_agent_quality", "gauge", "Mean quality of outcomes.",
       [](const auto& a) { return a.quality(); });
  each("sluice_agent_available", "gauge", "1: may be chosen.",
       [](const auto& a) { return a.breaker() == "open" || a.over_budget() ? 0 : 1; });
  return out;
}

class HttpServerImpl final : public HttpServer {
 public:
  explicit HttpServerImpl(std::unique_ptr<Client> client) : client_(std::move(client)) {}
  ~HttpServerImpl() override {
    server_.stop();
    if (thread_.joinable()) thread_.join();
  }
  absl::Status Open(const Options& o) {
    names_ = o.names;
    server_.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
    server_.set_socket_options([this](socket_t s) {
      socket_ = s;
      ListenAlone(s);
    });
    server_.set_keep_alive_max_count(1);  // an idle connection would hold a thread
    server_.set_payload_max_length(4096);
    server_.set_read_timeout(1);
    server_.set_write_timeout(5);
    server_.set_pre_routing_handler([this](const httplib::Request& q, httplib::Response& r) {
      const absl::Status asked = CheckOrigin(q);
      if (asked.ok()) return httplib::Server::HandlerResponse::Unhandled;
      r.status = 403;
      r.set_content(absl::StrCat(asked.message(), "\n"), "text/plain; charset=utf-8");
      return httplib::Server::HandlerResponse::Handled;
    });
    server_.Get("/", [](const httplib::Request&, httplib::Response& r) {
      r.set_content(kPage, "text/html; charset=utf-8");
    });
    server_.Get("/healthz", [](const httplib::Request&, httplib::Response& r) {
      r.set_content("ok\n", "text/plain");
    });
    server_.Get("/readyz", [this](const httplib::Request&, httplib::Response& r) {
      v1::Request q;
      q.mutable_health();
      const auto answer = Ask(q);
      const bool ready = answer.ok() && answer->health().ready();
      r.status = ready ? 200 : 503;
      r.set_content(ready ? "ready\n" : "not ready\n", "text/plain");
    });
    server_.Get("/metrics", [this](const httplib::Request&, httplib::Response& r) {
      v1::Request q;
      q.mutable_stats();
      const auto answer = Ask(q);
      if (!answer.ok()) return Refuse(answer.status(), r);
      r.set_content(Prometheus(answer->stats()), "text/plain; version=0.0.4");
    });
    Json("/api/stats", &v1::Request::mutable_stats, &v1::Response::stats);
    Json("/api/policies", &v1::Request::mutable_list_policies, &v1::Response::list_policies);
    Json("/api/heatmap", &v1::Request::mutable_heat_map, &v1::Response::heat_map);
    Json("/api/history", &v1::Request::mutable_history, &v1::Response::history);
    server_.Get("/api/explain", [this](const httplib::Request& http, httplib::Response& r) {
      uint64_t id = 0;
      const std::string text = http.get_param_value("id");
      if (!absl::SimpleAtoi(text, &id)) {
        return Refuse(
            absl::InvalidArgumentError(absl::StrCat("id='", text, "' is no decision's number")), r);
      }
      v1::Request q;
      q.mutable_explain()->set_decision_id(id);
      AnswerJson(q, &v1::Response::explain, r);
    });
    if (!server_.bind_to_port(o.host.c_str(), o.port)) {
      return absl::UnavailableError(absl::StrCat("http: cannot listen on ", o.host, ":", o.port,
                                                 "; is another server there?"));
    }
    // The silent ones wait in this queue, and the library's own has five places.
    listen(socket_, kWaiting);
    port_ = o.port;
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    return absl::OkStatus();
  }
  int port() const override { return port_; }

 private:
  static constexpr size_t kThreads = 16;
  static constexpr int kWaiting = 4096;

  // No second server may share the port, and a connection that says nothing is not accepted: it
  // would hold a thread, and probes would wait for it.
  static void ListenAlone(socket_t s) {
    const int yes = 1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    const int seconds = 30;
    setsockopt(s, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
  }
  // Whether a browser could have been made to ask this by somebody else's page.
  absl::Status CheckOrigin(const httplib::Request& q) const {
    const std::string host = q.get_header_value("Host");
    const std::string name = NameOf(host);
    if (!IsAddress(name) && name != "localhost" &&
        std::find(names_.begin(), names_.end(), name) == names_.end())
      return absl::PermissionDeniedError(
          absl::StrCat("host '", host, "'; allowed: addresses, localhost and http.allow_host"));
    const std::string origin = q.get_header_value("Origin");
    if (origin.empty() || origin == absl::StrCat("http://", host) ||
        origin == absl::StrCat("https://", host))
      return absl::OkStatus();
    return absl::PermissionDeniedError(absl::StrCat("a page of '", origin, "' may not ask"));
  }
  // Of "name:port" or "[address]:port".
  static std::string NameOf(const std::string& host) {
    if (absl::StartsWith(host, "[")) return host.substr(1, host.find(']') - 1);
    return absl::AsciiStrToLower(host.substr(0, host.rfind(':')));
  }
  static bool IsAddress(const std::string& name) {
    in6_addr any;
    return inet_pton(AF_INET, name.c_str(), &any) == 1 ||
           inet_pton(AF_INET6, name.c_str(), &any) == 1;
  }
  absl::StatusOr<v1::Response> Ask(const v1::Request& q) {
    std::lock_guard lock(mutex_);
    return client_->Call(q);
  }
  static void Refuse(const absl::Status& status, httplib::Response& r) {
    r.status = status.code() == absl::StatusCode::kNotFound          ? 404
               : status.code() == absl::StatusCode::kInvalidArgument ? 400
                                                                     : 503;
    r.set_content(absl::StrCat(status.message(), "\n"), "text/plain; charset=utf-8");
  }
  // A page that asks without arguments; `answer` is the field of the response that it shows.
  template <class Ask, class Answer>
  void Json(const char* path, Ask ask, Answer answer) {
    server_.Get(path, [this, ask, answer](const httplib::Request&, httplib::Response& r) {
      v1::Request q;
      (q.*ask)();
      AnswerJson(q, answer, r);
    });
  }
  template <class Answer>
  void AnswerJson(const v1::Request& q, Answer answer, httplib::Response& r) {
    const auto said = Ask(q);
    if (!said.ok()) return Refuse(said.status(), r);
    google::protobuf::util::JsonPrintOptions options;
    options.always_print_primitive_fields = true;
    options.preserve_proto_field_names = true;
    std::string text;
    if (!google::protobuf::util::MessageToJsonString(((*said).*answer)(), &text, options).ok())
      return Refuse(absl::InternalError("no JSON"), r);
    r.set_header("Cache-Control", "no-store");
    r.set_content(text, "application/json");
  }
  std::mutex mutex_;
  std::unique_ptr<Client> client_;
  std::vector<std::string> names_;
  socket_t socket_ = INVALID_SOCKET;
  httplib::Server server_;
  std::thread thread_;
  int port_ = 0;
};
}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const Options& o,
                                                              zmq::context_t& context,
                                                              const std::string& endpoint) {
  Client::Options options;
  options.timeout = std::chrono::milliseconds(1000);
  options.tries = 1;
  options.identity = o.identity;
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<Client> client,
                          Client::Connect(context, endpoint, options));
  auto server = std::make_unique<HttpServerImpl>(std::move(client));
  SLUICE_RETURN_IF_ERROR(server->Open(o));
  return server;
}
SLUICE_END_NAMESPACE
