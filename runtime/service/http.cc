#include "sluice/runtime/service/http.h"

#include <arpa/inet.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "sluice/api/check.h"
#include "sluice/runtime/service/http_connections.h"
#include "sluice/runtime/service/http_json.h"
#include "sluice/runtime/service/http_keys.h"
#include "sluice/runtime/service/metrics.h"
#include "sluice/runtime/service/page.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;
constexpr milliseconds kAnswerTime{1000};
constexpr milliseconds kFeedbackTime{5000};  // it waits for a disk
constexpr double kRetrySeconds = 1;          // where the server does not say
constexpr int64_t kModelMs = 1000;  // how long a server is believed to have no intent model

v1::Error ErrorOf(v1::Code code, absl::string_view text) {
  v1::Error e;
  e.set_code(code);
  e.set_text(std::string(text));
  return e;
}
v1::Error ErrorOf(const absl::Status& status) {
  const v1::Code code = absl::IsInvalidArgument(status) ? v1::INVALID_ARGUMENT : v1::INTERNAL;
  return ErrorOf(code, status.message());
}
int StatusOfCode(v1::Code code) {
  switch (code) {
    case v1::OK:
      return 200;
    case v1::INVALID_ARGUMENT:
    case v1::FAILED_PRECONDITION:
      return 400;
    case v1::UNAUTHENTICATED:
      return 401;
    case v1::NOT_FOUND:
      return 404;
    case v1::RATE_LIMITED:
      return 429;
    case v1::UNIMPLEMENTED:
      return 501;
    case v1::OVERLOADED:
    case v1::UNAVAILABLE:
      return 503;
    case v1::DEADLINE_EXCEEDED:
      return 504;
    default:
      return 500;
  }
}

bool IsAddress(const std::string& name) {
  in6_addr any;
  return inet_pton(AF_INET, name.c_str(), &any) == 1 ||
         inet_pton(AF_INET6, name.c_str(), &any) == 1;
}
// Of "name:port" or "[address]:port".
std::string NameOf(const std::string& host) {
  if (absl::StartsWith(host, "[")) return host.substr(1, host.find(']') - 1);
  return absl::AsciiStrToLower(host.substr(0, host.rfind(':')));
}
bool IsLoopback(absl::string_view address) {
  return address == "::1" || absl::StartsWith(address, "127.");
}
// The type alone, without its parameters.
bool IsJson(const std::string& content_type) {
  const std::string type = content_type.substr(0, content_type.find(';'));
  return absl::EqualsIgnoreCase(absl::StripAsciiWhitespace(type), "application/json");
}

class HttpServerImpl final : public HttpServer {
 public:
  explicit HttpServerImpl(const Options& options) : options_(options) {}

  absl::Status Open() {
    if (!options_.key_file.empty()) {
      SLUICE_ASSIGN_OR_RETURN(keys_, BearerKeys::Open(options_.key_file));
    }
    HttpConnections::Options o;
    o.host = options_.host;
    o.port = options_.port;
    o.lane = [](absl::string_view target) {
      target = target.substr(0, target.find('?'));
      if (target == "/readyz" || target == "/metrics") return HttpLane::kWatch;
      const bool at_once = target == "/healthz" || target == "/" || target == "/openapi.json";
      return at_once ? HttpLane::kAtOnce : HttpLane::kDecide;
    };
    o.answer = [this](const httplib::Request& q, httplib::Response& r) { Answer(q, r); };
    SLUICE_ASSIGN_OR_RETURN(connections_, HttpConnections::Open(std::move(o)));
    return absl::OkStatus();
  }
  int port() const override { return options_.port; }

 private:
  friend class HttpServer;
  struct Call {
    const httplib::Request& http;
    std::string key;  // whose request it is; "" without keys
  };
  // Who may ask: everybody, who has a key where there are keys, and without keys this machine
  // alone.
  enum class Access { kOpen, kKey, kKeyOrHere };
  struct Handler {
    const char* method;
    const char* path;
    Access access;
    void (HttpServerImpl::*answer)(const Call&, httplib::Response&);
  };
  static const std::vector<Handler>& Handlers();

  void Answer(const httplib::Request& q, httplib::Response& r) {
    const absl::Status asked = CheckOrigin(q);
    if (!asked.ok()) return Refuse(403, "PERMISSION_DENIED", asked.message(), r);
    const std::string method = q.method == "HEAD" ? "GET" : q.method;
    const Handler* found = nullptr;
    std::vector<std::string> allowed;
    const std::string path = q.target.substr(0, q.target.find('?'));  // as it was said: %41 is no A
    for (const Handler& h : Handlers()) {
      if (path != h.path) continue;
      allowed.push_back(h.method);
      if (method == h.method) found = &h;
    }
    if (allowed.empty())
      return Refuse(404, "NOT_FOUND",
                    absl::StrCat("no page '", path, "'; /openapi.json has them all"), r);
    if (found == nullptr) {
      r.set_header("Allow", absl::StrJoin(allowed, ", "));
      return Refuse(405, "UNIMPLEMENTED",
                    absl::StrCat(q.method, "; allowed: ", absl::StrJoin(allowed, ", ")), r);
    }
    Call call{q, ""};
    if (found->access != Access::kOpen && !Admit(q, found->access, &call.key, r)) return;
    if (method == "POST" && !CheckBody(q, r)) return;
    (this->*found->answer)(call, r);
  }
  // Whether a browser could have been made to ask this by somebody else's page.
  absl::Status CheckOrigin(const httplib::Request& q) const {
    const std::string host = q.get_header_value("Host");
    const std::string name = NameOf(host);
    const std::vector<std::string>& names = options_.names;
    if (!IsAddress(name) && name != "localhost" &&
        std::find(names.begin(), names.end(), name) == names.end())
      return absl::PermissionDeniedError(
          absl::StrCat("host '", host, "'; allowed: addresses, localhost and http.allow_host"));
    const std::string origin = q.get_header_value("Origin");
    if (origin.empty() || origin == absl::StrCat("http://", host) ||
        origin == absl::StrCat("https://", host))
      return absl::OkStatus();
    return absl::PermissionDeniedError(absl::StrCat("a page of '", origin, "' may not ask"));
  }
  bool Admit(const httplib::Request& q, Access access, std::string* name, httplib::Response& r) {
    if (keys_ == nullptr) {
      if (access != Access::kKeyOrHere || IsLoopback(q.remote_addr)) return true;
      Refuse(403, "PERMISSION_DENIED",
             absl::StrCat("from ", q.remote_addr,
                          " without keys; allowed: this machine, or all "
                          "with a key of http.key_file"),
             r);
      return false;
    }
    const std::string header = q.get_header_value("Authorization");
    const bool bearer = absl::StartsWithIgnoreCase(header, "Bearer ");
    std::optional<std::string> owner;
    if (bearer) owner = keys_->NameOf(absl::StripAsciiWhitespace(header.substr(7)));
    if (owner) {
      *name = *std::move(owner);
      return true;
    }
    r.set_header("WWW-Authenticate", "Bearer realm=\"sluice\"");
    Refuse(401, "UNAUTHENTICATED",
           bearer ? "the key is not known" : "no key; allowed: Authorization: Bearer KEY", r);
    return false;
  }
  bool CheckBody(const httplib::Request& q, httplib::Response& r) {
    const std::string type = q.get_header_value("Content-Type");
    const std::string packed = q.get_header_value("Content-Encoding");
    if (IsJson(type) && (packed.empty() || packed == "identity")) return true;
    Refuse(415, "INVALID_ARGUMENT",
           absl::StrCat("Content-Type '", type, "', Content-Encoding '", packed,
                        "'; allowed: application/json, not packed"),
           r);
    return false;
  }

  v1::Response Ask(v1::Request& q, const std::string& key, milliseconds time = kAnswerTime) {
    q.set_caller(key);  // whose budgets and limits count
    return options_.ask(q, time);
  }

  static void Refuse(int status, absl::string_view code, absl::string_view why,
                     httplib::Response& r, double retry_after_s = 0) {
    if (status == 429 || status == 503) {
      if (!(retry_after_s > 0)) retry_after_s = kRetrySeconds;
      r.set_header("Retry-After", absl::StrCat(std::ceil(std::min(retry_after_s, 86400.0))));
    }
    r.status = status;
    Json(ErrorBody(code, why, retry_after_s), r);
  }
  static void Refuse(const v1::Error& e, httplib::Response& r) {
    Refuse(StatusOfCode(e.code()), v1::Code_Name(e.code()), e.text(), r, e.retry_after_s());
  }
  static void Json(const std::string& text, httplib::Response& r) {
    r.set_header("Cache-Control", "no-store");
    r.set_content(text, "application/json");
  }
  static void Json(const google::protobuf::Message& message, httplib::Response& r) {
    Json(MessageJson(message), r);
  }

  void Page(const Call&, httplib::Response& r) { r.set_content(kPage, "text/html; charset=utf-8"); }
  void OpenApi(const Call&, httplib::Response& r) { r.set_content(kOpenApi, "application/json"); }
  void Healthz(const Call&, httplib::Response& r) { r.set_content("ok\n", "text/plain"); }
  void Readyz(const Call& call, httplib::Response& r) {
    v1::Request q;
    q.mutable_health();
    const bool ready = Ask(q, call.key).health().ready();
    r.status = ready ? 200 : 503;
    r.set_content(ready ? "ready\n" : "not ready\n", "text/plain");
  }
  void Metrics(const Call& call, httplib::Response& r) {
    v1::Request q;
    q.mutable_stats();
    const v1::Response answer = Ask(q, call.key);
    if (answer.has_error()) return Refuse(answer.error(), r);
    r.set_content(PrometheusText(answer.stats()), "text/plain; version=0.0.4; charset=utf-8");
  }
  // What the page shows: a request without arguments, and the field of the response that it shows.
  template <auto ask, auto answer>
  void Shown(const Call& call, httplib::Response& r) {
    v1::Request q;
    (q.*ask)();
    const v1::Response said = Ask(q, call.key);
    if (said.has_error()) return Refuse(said.error(), r);
    Json((said.*answer)(), r);
  }
  // That none runs is no error for a page that asks every second.
  void Experiment(const Call& call, httplib::Response& r) {
    v1::Request q;
    q.mutable_experiment();
    const v1::Response said = Ask(q, call.key);
    if (said.has_error() && said.error().code() != v1::NOT_FOUND) return Refuse(said.error(), r);
    Json(said.experiment(), r);
  }
  void ExplainId(const Call& call, httplib::Response& r) {
    v1::Request q;
    uint64_t id = 0;
    const std::string text = call.http.get_param_value("id");
    if (!absl::SimpleAtoi(text, &id))
      return Refuse(
          ErrorOf(v1::INVALID_ARGUMENT, absl::StrCat("id='", text, "' is no decision's number")),
          r);
    q.mutable_explain()->set_decision_id(id);
    Explain(q, call, r);
  }
  void ExplainBody(const Call& call, httplib::Response& r) {
    v1::Request q;
    const absl::Status read = ReadExplain(call.http.body, q.mutable_explain());
    if (!read.ok()) return Refuse(ErrorOf(read), r);
    Explain(q, call, r);
  }
  void Explain(v1::Request& q, const Call& call, httplib::Response& r) {
    const v1::Response answer = Ask(q, call.key);
    if (answer.has_error()) return Refuse(answer.error(), r);
    Json(answer.explain(), r);
  }
  void Route(const Call& call, httplib::Response& r) {
    v1::Request q;
    bool single = false;
    const absl::Status read = ReadRoute(call.http.body, q.mutable_route(), &single);
    if (!read.ok()) return Refuse(ErrorOf(read), r);
    const v1::Response answer = Ask(q, call.key);
    if (answer.has_error()) return Refuse(answer.error(), r);
    // Of many, each has its own error; of one, it is the answer's.
    if (single && answer.route().decisions_size() == 1 && answer.route().decisions(0).has_error())
      return Refuse(answer.route().decisions(0).error(), r);
    Json(answer.route(), r);
  }
  void Feedback(const Call& call, httplib::Response& r) {
    v1::Request q;
    bool single = false;
    const absl::Status read = ReadFeedback(call.http.body, q.mutable_feedback(), &single);
    if (!read.ok()) return Refuse(ErrorOf(read), r);
    const v1::Response answer = Ask(q, call.key, kFeedbackTime);
    if (answer.has_error()) return Refuse(answer.error(), r);
    const auto& results = answer.feedback().results();
    if (single && results.size() == 1 && results[0].status() == v1::FeedbackResult::REJECTED)
      return Refuse(ErrorOf(v1::INVALID_ARGUMENT, results[0].reason()), r);
    Json(answer.feedback(), r);
  }
  void Decide(const Call& call, httplib::Response& r) {
    absl::StatusOr<ChatQuery> chat = ReadChat(call.http.body);
    if (!chat.ok()) return Refuse(ErrorOf(chat.status()), r);
    v1::Request q;
    v1::Query& query = *q.mutable_route()->add_queries();
    query = std::move(chat->query);
    if (query.task().empty() && NowMs() >= no_model_until_ms_) query.set_text(chat->text);
    v1::Response answer = Ask(q, call.key);
    if (ErrorIn(answer).code() == v1::FAILED_PRECONDITION && !query.text().empty()) {
      // It cannot read the task of a text: then it decides without one.
      no_model_until_ms_ = NowMs() + kModelMs;
      query.clear_text();
      answer = Ask(q, call.key);
    }
    const v1::Error error = ErrorIn(answer);
    if (error.code() != v1::OK) return Refuse(error, r);
    Json(DecideJson(answer.route().decisions(0)), r);
  }
  static int64_t NowMs() {
    return std::chrono::duration_cast<milliseconds>(Clock::now().time_since_epoch()).count();
  }
  static v1::Error ErrorIn(const v1::Response& r) {
    if (r.has_error()) return r.error();
    if (r.route().decisions_size() != 1) return ErrorOf(v1::INTERNAL, "no decision came back");
    return r.route().decisions(0).error();
  }
  std::string ModelOf(const std::string& agent) const {
    const std::string model = options_.model_of ? options_.model_of(agent) : "";
    return model.empty() ? agent : model;
  }
  // The model is that of the last stage, whose answer the caller gets.
  std::string DecideJson(const v1::Decision& d) const {
    std::vector<std::string> fallbacks;
    if (d.fallbacks_size() > 0) {
      for (const std::string& agent : d.fallbacks(d.fallbacks_size() - 1).agents())
        fallbacks.push_back(absl::StrCat("{\"agent\":", TextJson(agent),
                                         ",\"model\":", TextJson(ModelOf(agent)), "}"));
    }
    std::vector<std::string> agents;
    for (const std::string& agent : d.agents()) agents.push_back(TextJson(agent));
    const std::string last = d.agents_size() > 0 ? d.agents(d.agents_size() - 1) : "";
    const std::string why =
        d.kept() ? "the session keeps its agents"
                 : absl::StrCat(d.policy(), " chose ", absl::StrJoin(d.agents(), ", "),
                                " with probability ", d.propensity());
    return absl::StrCat("{\"decision_id\":\"", d.id(), "\",\"model\":", TextJson(ModelOf(last)),
                        ",\"agents\":[", absl::StrJoin(agents, ","), "],\"fallbacks\":[",
                        absl::StrJoin(fallbacks, ","), "],\"receipt\":\"",
                        absl::Base64Escape(d.receipt()), "\",\"policy\":", TextJson(d.policy()),
                        ",\"propensity\":", NumberJson(d.propensity()),
                        ",\"kept\":", d.kept() ? "true" : "false", ",\"why\":", TextJson(why), "}");
  }

  const Options options_;
  std::unique_ptr<BearerKeys> keys_;
  std::atomic<int64_t> no_model_until_ms_{0};
  std::unique_ptr<HttpConnections> connections_;  // last: its threads use the rest
};

const std::vector<HttpServerImpl::Handler>& HttpServerImpl::Handlers() {
  using S = HttpServerImpl;
  using Q = v1::Request;
  using R = v1::Response;
  constexpr Access kOpen = Access::kOpen;
  constexpr Access kKey = Access::kKey;
  constexpr Access kHere = Access::kKeyOrHere;
  static const std::vector<Handler> all = {
      {"POST", "/v1/decide", kHere, &S::Decide},
      {"POST", "/v1/route", kHere, &S::Route},
      {"POST", "/v1/feedback", kHere, &S::Feedback},
      {"GET", "/v1/explain", kHere, &S::ExplainId},
      {"POST", "/v1/explain", kHere, &S::ExplainBody},
      {"GET", "/healthz", kOpen, &S::Healthz},
      {"GET", "/readyz", kOpen, &S::Readyz},
      {"GET", "/metrics", kOpen, &S::Metrics},
      {"GET", "/openapi.json", kOpen, &S::OpenApi},
      {"GET", "/", kOpen, &S::Page},
      {"GET", "/api/stats", kKey, &S::Shown<&Q::mutable_stats, &R::stats>},
      {"GET", "/api/policies", kKey, &S::Shown<&Q::mutable_list_policies, &R::list_policies>},
      {"GET", "/api/heatmap", kKey, &S::Shown<&Q::mutable_heat_map, &R::heat_map>},
      {"GET", "/api/history", kKey, &S::Shown<&Q::mutable_history, &R::history>},
      {"GET", "/api/experiment", kKey, &S::Experiment},
      {"GET", "/api/explain", kKey, &S::ExplainId},
  };
  return all;
}
}  // namespace

std::vector<HttpServer::Route> HttpServer::Routes() {
  std::vector<Route> routes;
  for (const auto& h : HttpServerImpl::Handlers()) routes.push_back({h.method, h.path});
  return routes;
}
absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const Options& options) {
  auto server = std::make_unique<HttpServerImpl>(options);
  SLUICE_RETURN_IF_ERROR(server->Open());
  return server;
}
SLUICE_END_NAMESPACE
