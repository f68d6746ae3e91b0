// The sidecar over HTTP: decisions and feedback, refusals, keys, probes under load, the
// description of it all.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <ifaddrs.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <functional>
#include <regex>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "sluice/runtime/service/http.h"
#include "sluice/runtime/service/http_json.h"
#include "sluice/tests/support/raw_socket.h"
#include "sluice/tests/support/running_server.h"

SLUICE_BEGIN_NAMESPACE
namespace http_test {
using testing::HasSubstr;
using testing::StartsWith;
using Clock = std::chrono::steady_clock;

struct Said {
  int status = 0;
  std::string text, allow, retry_after, www_authenticate;
  Json json() const { return Json::parse(text, nullptr, false); }
  std::string code() const { return json()["error"]["code"]; }
  std::string message() const { return json()["error"]["message"]; }
};
class Caller {
 public:
  explicit Caller(int port, const std::string& key = "") : client_("127.0.0.1", port) {
    client_.set_keep_alive(true);
    client_.set_tcp_nodelay(true);
    client_.set_read_timeout(10);
    if (!key.empty()) headers_.emplace("Authorization", "Bearer " + key);
  }
  Said Get(const std::string& path) { return Of(client_.Get(path, headers_)); }
  Said Post(const std::string& path, const std::string& body,
            const char* type = "application/json") {
    return Of(client_.Post(path, headers_, body, type));
  }
  Said Send(const std::string& path, const Json& body) { return Post(path, body.dump()); }
  httplib::Client& raw() { return client_; }

  static Said Of(const httplib::Result& r) {
    if (!r) return {};
    return {r->status, r->body, r->get_header_value("Allow"), r->get_header_value("Retry-After"),
            r->get_header_value("WWW-Authenticate")};
  }

 private:
  httplib::Client client_;
  httplib::Headers headers_;
};
std::string WithHttp(int port, const std::string& config = kTwoStages) {
  return absl::StrCat("http { port: ", port, " }", config);
}
const char kChat[] = R"({"model": "auto", "messages": [{"role": "user", "content": "1 + 1?"}]})";

void Fail(v1::Response& r, v1::Code code, const std::string& text, double retry_after_s = 0) {
  r.mutable_error()->set_code(code);
  r.mutable_error()->set_text(text);
  r.mutable_error()->set_retry_after_s(retry_after_s);
}
// A server whose answers the test makes, by several threads at once. One of version 0 does not
// come.
class FakeServer {
 public:
  using Answer = std::function<void(const v1::Request&, v1::Response&)>;
  explicit FakeServer(const Answer& answer) {
    HttpServer::Options o;
    o.host = "127.0.0.1";
    o.port = FreePort();
    o.model_of = [](const std::string& agent) { return agent == "b" ? "model-b" : ""; };
    o.ask = [answer](const v1::Request& q, std::chrono::milliseconds time) {
      v1::Response r;
      r.set_version(1);
      answer(q, r);
      if (r.version() != 0) return r;
      std::this_thread::sleep_for(time);
      Fail(r, v1::DEADLINE_EXCEEDED, absl::StrCat("no answer in ", time.count(), " ms"));
      return r;
    };
    auto http = HttpServer::Start(o);
    EXPECT_TRUE(http.ok()) << http.status();
    http_ = *std::move(http);
  }
  int port() const { return http_->port(); }

 private:
  std::unique_ptr<HttpServer> http_;
};

TEST(Http, DecidesAndLearns) {
  const int port = FreePort();
  RunningServer s(WithHttp(port));
  Caller c(port);
  const Said one = c.Send("/v1/route", Json{{"task", "math"}, {"unit", "u"}});
  ASSERT_EQ(one.status, 200) << one.text;
  const Json decision = one.json()["decisions"][0];
  EXPECT_EQ(decision["agents"].size(), 2u);

  const Said many = c.Send("/v1/route", Json{{"queries", {{{"task", "math"}}, {{"task", "?"}}}}});
  ASSERT_EQ(many.status, 200) << many.text;
  EXPECT_EQ(many.json()["decisions"][1]["error"]["code"], "INVALID_ARGUMENT");
  EXPECT_FALSE(many.json()["decisions"][0].contains("error"));
  const Said wrong = c.Send("/v1/route", Json{{"task", "?"}});
  EXPECT_EQ(wrong.status, 400) << "of one query, its error is the answer's";
  EXPECT_THAT(wrong.message(), HasSubstr("no task '?'"));

  const Json outcome = {{"receipt", decision["receipt"]}, {"quality", 1}, {"cost_usd", 0.01}};
  const Said told = c.Send("/v1/feedback", outcome);
  ASSERT_EQ(told.status, 200) << told.text;
  EXPECT_EQ(told.json()["results"][0]["status"], "APPLIED");
  EXPECT_EQ(told.json()["results"][0]["decision_id"], decision["id"]);
  EXPECT_EQ(c.Send("/v1/feedback", outcome).json()["results"][0]["status"], "DUPLICATE");
  const Said forged = c.Send("/v1/feedback", Json{{"receipt", "AAAA"}, {"quality", 1}});
  EXPECT_EQ(forged.status, 400);
  const Said both = c.Send("/v1/feedback", Json{{"outcomes", {{{"receipt", "AAAA"}}, outcome}}});
  ASSERT_EQ(both.status, 200);
  EXPECT_EQ(both.json()["results"][0]["status"], "REJECTED");

  const std::string id = decision["id"];
  const Said why = c.Get("/v1/explain?id=" + id);
  ASSERT_EQ(why.status, 200) << why.text;
  EXPECT_EQ(why.json()["stages"].size(), 2u);
  EXPECT_EQ(c.Send("/v1/explain", Json{{"decision_id", id}}).json(), why.json());
  EXPECT_EQ(c.Get("/v1/explain?id=999999999").status, 404);

  const Said chat = c.Post("/v1/decide", kChat);
  ASSERT_EQ(chat.status, 200) << "a text without an intent model is no error: " << chat.text;
  EXPECT_EQ(chat.json()["model"], chat.json()["agents"][1]);
  EXPECT_THAT(std::string(chat.json()["why"]), HasSubstr("with probability"));
  const Said spent = c.Send("/v1/feedback", Json{{"receipt", chat.json()["receipt"]}});
  EXPECT_EQ(spent.status, 200) << spent.text;
  Json full = Json::parse(kChat);
  full["metadata"] = {{"task", "code"}, {"exclude", "solve-a,solve-b"}};
  EXPECT_EQ(c.Send("/v1/decide", full).json()["model"], "solve-c");
  full["metadata"]["task"] = "poetry";
  EXPECT_THAT(c.Send("/v1/decide", full).message(), HasSubstr("no task 'poetry'"));
}

TEST(Http, EveryRefusalHasItsStatus) {
  const int port = FreePort();
  RunningServer s(WithHttp(port));
  Caller c(port);
  EXPECT_EQ(c.Get("/v1/nothing").status, 404);
  EXPECT_EQ(c.Get("/%61pi/stats").status, 404) << "a page has one name";
  const Said get = c.Get("/v1/route");
  EXPECT_EQ(get.status, 405);
  EXPECT_EQ(get.allow, "POST");
  EXPECT_EQ(Caller::Of(c.raw().Delete("/v1/explain")).allow, "GET, POST");
  EXPECT_EQ(c.Post("/v1/route", "{}", "text/plain").status, 415);
  EXPECT_EQ(c.Post("/v1/route", "{}", "application/json; charset=utf-8").status, 200);
  EXPECT_EQ(c.Post("/v1/route", "{").status, 400);
  EXPECT_EQ(c.Post("/v1/route", R"({"tsak": "math"})").message(),
            "'tsak': no such field; allowed: task, intent, text, features, exclude, unit, "
            "max_cost_usd, tag, session, previous");
  EXPECT_EQ(c.Post("/v1/decide", "{}").code(), "INVALID_ARGUMENT");
  EXPECT_EQ(c.Get("/v1/explain?id=x").status, 400);
  const Said large = c.Post("/v1/route", std::string(2 << 20, ' '));
  EXPECT_EQ(large.status, 413);
  EXPECT_THAT(large.message(), HasSubstr("allowed: up to 1048576"));

  const auto raw = [&](const std::string& bytes) {
    Raw peer(port);
    peer.Say(bytes);
    return peer.Hear(1000);
  };
  const std::string host = "Host: localhost\r\n";
  EXPECT_THAT(
      raw("POST /v1/route HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
      StartsWith("HTTP/1.1 411"));
  EXPECT_THAT(raw("GET /" + std::string(20000, 'a')), StartsWith("HTTP/1.1 431"));
  EXPECT_THAT(raw("nonsense\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(raw("POST /v1/route HTTP/1.1\r\n" + host +
                  "Content-Type: application/json\r\nContent-Encoding: gzip\r\n"
                  "Content-Length: 2\r\n\r\n{}"),
              StartsWith("HTTP/1.1 415"));
  EXPECT_THAT(raw("POST /v1/route HTTP/1.1\r\nHost: evil.example\r\nContent-Type: "
                  "application/json\r\nContent-Length: 2\r\n\r\n{}"),
              StartsWith("HTTP/1.1 403"));
}

TEST(Http, TheServersErrorsKeepTheirMeaning) {
  const std::tuple<v1::Code, int, double, const char*> kCodes[] = {
      {v1::RATE_LIMITED, 429, 2.5, "3"},     {v1::OVERLOADED, 503, 0, "1"},
      {v1::UNAVAILABLE, 503, 30, "30"},      {v1::DEADLINE_EXCEEDED, 504, 0, ""},
      {v1::UNAUTHENTICATED, 401, 0, ""},     {v1::INTERNAL, 500, 0, ""},
      {v1::FAILED_PRECONDITION, 400, 0, ""}, {v1::UNIMPLEMENTED, 501, 0, ""}};
  std::atomic<int> at{0};
  FakeServer s([&](const v1::Request&, v1::Response& r) {
    const auto& [code, status, retry, header] = kCodes[at];
    Fail(r, code, "because", retry);
  });
  Caller c(s.port());
  for (const auto& [code, status, retry, header] : kCodes) {
    for (const char* path : {"/v1/route", "/v1/feedback"}) {
      const Said said = c.Post(path, "{}");
      EXPECT_EQ(said.status, status);
      EXPECT_EQ(said.retry_after, header) << status;
      EXPECT_EQ(said.code(), v1::Code_Name(code));
      EXPECT_EQ(said.message(), "because");
    }
    EXPECT_EQ(c.Post("/v1/decide", kChat).status, status);
    ++at;
  }
}

TEST(Http, ASilentServerIsGivenUpInTime) {
  FakeServer s([](const v1::Request&, v1::Response& r) { r.set_version(0); });
  Caller c(s.port());
  const auto began = Clock::now();
  const Said late = c.Post("/v1/route", "{}");
  EXPECT_EQ(late.status, 504);
  EXPECT_EQ(late.message(), "no answer in 1000 ms");
  EXPECT_EQ(c.Get("/readyz").status, 503);
  EXPECT_LT(Clock::now() - began, std::chrono::seconds(4));
}

TEST(Http, ADecisionNamesModelsAndFallbacksAndAsksWithoutATextThatIsNotRead) {
  std::atomic<int> asked{0}, texts{0};
  std::atomic<bool> has_model{false};
  FakeServer s([&](const v1::Request& q, v1::Response& r) {
    ++asked;
    v1::Decision& d = *r.mutable_route()->add_decisions();
    const bool text = !q.route().queries(0).text().empty();
    texts += text;
    if (text && !has_model) {
      d.mutable_error()->set_code(v1::FAILED_PRECONDITION);
      d.mutable_error()->set_text("no intent model");
      return;
    }
    d.set_id(7);
    d.add_agents("a");
    d.add_agents("b");
    d.add_fallbacks()->add_agents("a2");
    d.add_fallbacks();
    d.mutable_fallbacks(1)->add_agents("c");
    d.mutable_fallbacks(1)->add_agents("b");
    d.set_kept(has_model);
  });
  Caller c(s.port());
  const Said first = c.Post("/v1/decide", kChat);
  ASSERT_EQ(first.status, 200) << first.text;
  EXPECT_EQ(first.json()["model"], "model-b");
  EXPECT_EQ(first.json()["fallbacks"].dump(),
            R"([{"agent":"c","model":"c"},{"agent":"b","model":"model-b"}])");
  EXPECT_EQ(asked, 2);
  c.Post("/v1/decide", kChat);
  EXPECT_EQ(asked, 3) << "for a while the text is not tried again";
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  has_model = true;
  const Said kept = c.Post("/v1/decide", kChat);
  EXPECT_EQ(texts, 2);
  EXPECT_EQ(kept.json()["why"], "the session keeps its agents");
}

TEST(Http, AConnectionCarriesManyRequests) {
  const int port = FreePort();
  RunningServer s(WithHttp(port));
  const std::string get = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
  const std::string body = R"({"task": "math"})";
  const std::string post = absl::StrCat(
      "POST /v1/route HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: ",
      body.size(), "\r\n\r\n", body);
  Raw peer(port);
  peer.Say(get + post + get + post);  // before any answer
  const std::string answers = peer.Hear(500);
  size_t ok = 0;
  for (size_t at = 0; (at = answers.find("HTTP/1.1 200 OK", at)) != answers.npos; ++at) ++ok;
  EXPECT_EQ(ok, 4u) << answers;
  for (char byte : post) peer.Say(std::string(1, byte));
  EXPECT_THAT(peer.Hear(500), HasSubstr("HTTP/1.1 200 OK"));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  peer.Say(get);
  EXPECT_THAT(peer.Hear(500), HasSubstr("ok\n"));

  Raw polite(port);
  polite.Say(
      "POST /v1/route HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_EQ(polite.Hear(500), "HTTP/1.1 100 Continue\r\n\r\n");
  polite.Say("{}");
  EXPECT_THAT(polite.Hear(500), HasSubstr("HTTP/1.1 200 OK"));

  Raw last(port);
  last.Say("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  const auto began = Clock::now();
  EXPECT_THAT(last.Hear(5000), HasSubstr("ok\n"));
  EXPECT_LT(Clock::now() - began, std::chrono::seconds(1)) << "closed, as asked";
}

TEST(Http, ProbesWaitForNobody) {
  const int port = FreePort();
  RunningServer s(WithHttp(port));
  std::vector<std::unique_ptr<Raw>> peers;
  const auto quick = [&](const char* with) {
    for (const char* path : {"/healthz", "/readyz", "/metrics"}) {
      Caller c(port);
      const auto began = Clock::now();
      EXPECT_EQ(c.Get(path).status, 200) << path << " with " << with;
      EXPECT_LT(Clock::now() - began, std::chrono::milliseconds(500)) << path << " with " << with;
    }
  };
  for (int i = 0; i < 100; ++i) peers.push_back(std::make_unique<Raw>(port));
  quick("silent peers");
  for (int i = 0; i < 100; ++i) {
    peers.push_back(std::make_unique<Raw>(port));
    peers.back()->Say("POST /v1/route HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{");
  }
  quick("half requests");
  for (int i = 0; i < 100; ++i) {
    peers.push_back(std::make_unique<Raw>(port));
    peers.back()->Say("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");  // read by nobody
  }
  quick("idle ones");
  std::atomic<bool> stop{false};
  std::vector<std::thread> busy;
  for (int i = 0; i < 24; ++i) {
    busy.emplace_back([&] {
      Caller c(port);
      while (!stop) c.Post("/v1/route", "{}");
    });
  }
  for (int i = 0; i < 3; ++i) quick("deciding ones");
  stop = true;
  for (std::thread& t : busy) t.join();
}
TEST(Http, WhoHasBeenSilentLongestMakesRoom) {
  rlimit files = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &files), 0);
  const rlimit few = {400, files.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  const int port = FreePort();
  RunningServer s(WithHttp(port));
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &files), 0);
  std::vector<std::unique_ptr<Raw>> peers;
  for (int i = 0; i < 300; ++i) peers.push_back(std::make_unique<Raw>(port));
  EXPECT_EQ(Caller(port).Get("/healthz").status, 200);
  const auto began = Clock::now();
  EXPECT_EQ(peers.front()->Hear(2000), "") << "closed";
  EXPECT_LT(Clock::now() - began, std::chrono::seconds(1));
  peers.back()->Say("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_THAT(peers.back()->Hear(300), HasSubstr("ok\n"));
}
TEST(Http, ProbesThatNeedNobodyAnswerWhileTheServerIsSilent) {
  FakeServer s([](const v1::Request&, v1::Response& r) { r.set_version(0); });
  std::vector<std::unique_ptr<Raw>> peers;
  for (int i = 0; i < 64; ++i) {
    peers.push_back(std::make_unique<Raw>(s.port()));
    peers.back()->Say(i % 2 == 0 ? "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
                                 : "GET /v1/explain?id=1 HTTP/1.1\r\nHost: localhost\r\n\r\n");
  }
  Caller c(s.port());
  const auto began = Clock::now();
  EXPECT_EQ(c.Get("/healthz").status, 200);
  EXPECT_LT(Clock::now() - began, std::chrono::milliseconds(500));
}

// HTTP and the socket are two doors to the same rooms: who is busy at one shuts nobody out.
TEST(Http, IsHeardBesideABusySocket) {
  const int port = FreePort();
  RunningServer s(WithHttp(port));
  std::atomic<bool> stop{false};
  std::atomic<int> answers{0};
  std::thread busy([&] {
    const auto client = s.Connect();
    v1::Request q;
    for (int i = 0; i < 200; ++i) q.mutable_route()->add_queries()->set_task("math");
    for (int i = 0; i < 64; ++i) (void)client->Send(q);
    while (!stop) {
      answers += client->Receive(std::chrono::milliseconds(50)).ok();
      (void)client->Send(q);
    }
  });
  while (answers == 0) std::this_thread::yield();
  Caller c(port);
  for (int i = 0; i < 20; ++i) {
    const Said said = c.Post("/v1/route", R"({"task": "math"})");
    EXPECT_EQ(said.status, 200) << said.text;
  }
  EXPECT_GT(answers, 1);
  stop = true;
  busy.join();
}
TEST(Http, ShadowsDecideToo) {
  const int port = FreePort();
  RunningServer s(WithHttp(port, absl::StrCat("policy { name: \"a\" spec: \"random\" } policy { "
                                              "name: \"b\" spec: \"random\" } experiment { "
                                              "shadow: \"b\" }",
                                              kTwoStages)));
  Caller c(port);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(c.Post("/v1/route", "{}").status, 200);
  const auto until = Clock::now() + std::chrono::seconds(20);
  std::string seen;
  while (seen != "3" && Clock::now() < until) {
    const Json shadows = c.Get("/api/experiment").json()["shadows"];
    if (!shadows.empty() && shadows[0].contains("decisions")) seen = shadows[0]["decisions"];
  }
  EXPECT_EQ(seen, "3");
}

// An address of this machine that is not loopback; "" if it has none.
std::string OwnAddress() {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return "";
  std::string found;
  for (ifaddrs* i = all; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != AF_INET) continue;
    char text[INET_ADDRSTRLEN];
    inet_ntop(AF_INET, &reinterpret_cast<sockaddr_in*>(i->ifa_addr)->sin_addr, text, sizeof text);
    if (std::string(text).rfind("127.", 0) != 0) found = text;
  }
  freeifaddrs(all);
  return found;
}
TEST(Http, WithoutKeysOnlyThisMachineDecides) {
  const std::string address = OwnAddress();
  if (address.empty()) GTEST_SKIP() << "this machine has loopback alone";
  const int port = FreePort();
  RunningServer s(absl::StrCat("http { host: \"0.0.0.0\" port: ", port, " }", kTwoStages));
  httplib::Client other(address, port);
  const Said refused = Caller::Of(other.Post("/v1/route", "{}", "application/json"));
  EXPECT_EQ(refused.status, 403);
  EXPECT_THAT(refused.message(), HasSubstr("allowed: this machine"));
  EXPECT_EQ(Caller::Of(other.Get("/v1/explain?id=1")).status, 403);
  for (const char* open : {"/healthz", "/metrics", "/", "/api/stats"})
    EXPECT_EQ(Caller::Of(other.Get(open)).status, 200) << open;
  EXPECT_EQ(Caller(port).Post("/v1/route", "{}").status, 200);
}

TEST(Http, KeysOpenWhatTheirFileSays) {
  RunningServer s;
  const std::string file = MakeTempDir() + "/keys";
  const auto write = [&](const std::string& text) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // a time stamp of its own
    std::ofstream(file) << text;
  };
  HttpServer::Options o;
  o.host = "127.0.0.1";
  o.key_file = file;
  o.ask = [&](const v1::Request& q, std::chrono::milliseconds time) {
    const auto client = s.Connect();
    v1::Request sent = q;
    EXPECT_TRUE(client->Send(sent).ok());
    return *client->Receive(time);
  };
  const auto start = [&] {
    o.port = FreePort();
    return HttpServer::Start(o);
  };
  const std::pair<const char*, const char*> kBad[] = {
      {"alice\n", ":1: 1 words; allowed: NAME KEY"},
      {"\nalice short\n", ":2: a key of 5 characters; allowed: 16 or more"},
      {"a 0123456789abcdef x\n", ":1: 3 words"},
      {"a 0123456789abcdef\nb 0123456789abcdef\n", ":2: the same key as a has"},
      {"a 0123456789abcd\xc3\xa4\n", ":1: a character that no header can carry"}};
  EXPECT_THAT(std::string(start().status().message()), HasSubstr("cannot be read"));
  for (const auto& [text, why] : kBad) {
    write(text);
    EXPECT_THAT(std::string(start().status().message()), HasSubstr(why)) << text;
  }
  write("# keys\nalice alice-0123456789abcdef\nbob bob-0123456789abcdef\n");
  auto http = start();
  ASSERT_TRUE(http.ok()) << http.status();
  Caller nobody(o.port);
  Caller alice(o.port, "alice-0123456789abcdef");
  Caller carol(o.port, "carol-0123456789abcdef");
  for (const char* path : {"/v1/explain?id=1", "/api/stats", "/api/explain?id=1"}) {
    const Said refused = nobody.Get(path);
    EXPECT_EQ(refused.status, 401) << path;
    EXPECT_EQ(refused.code(), "UNAUTHENTICATED");
    EXPECT_THAT(refused.www_authenticate, StartsWith("Bearer"));
    EXPECT_EQ(carol.Get(path).status, 401) << path;
    EXPECT_NE(alice.Get(path).status, 401) << path;
  }
  EXPECT_EQ(nobody.Post("/v1/route", "{}").status, 401);
  EXPECT_EQ(alice.Post("/v1/route", "{}").status, 200);
  for (const char* open : {"/healthz", "/readyz", "/metrics", "/", "/openapi.json"})
    EXPECT_EQ(nobody.Get(open).status, 200) << open;

  write("alice short");  // by mistake: those who were in stay, nobody comes in
  EXPECT_EQ(alice.Get("/api/stats").status, 200);
  EXPECT_EQ(carol.Get("/api/stats").status, 401);
  write("carol carol-0123456789abcdef\n");
  EXPECT_EQ(alice.Get("/api/stats").status, 401) << "on the same connection";
  EXPECT_EQ(carol.Get("/api/stats").status, 200);
}

// Whether a value is as a schema of the description says; what is wrong, or "".
class Schemas {
 public:
  explicit Schemas(const Json& root) : root_(root) {}
  std::string Check(const Json& schema, const Json& value, const std::string& at = "") const {
    if (schema.contains("$ref")) return Check(Ref(schema["$ref"]), value, at);
    if (schema.contains("anyOf")) {
      std::string why;
      for (const Json& s : schema["anyOf"]) {
        const std::string wrong = Check(s, value, at);
        if (wrong.empty()) return "";
        why += wrong + "; ";
      }
      return why;
    }
    if (schema.contains("type") && !HasType(schema["type"], value))
      return absl::StrCat(at, ": ", value.dump(), " is no ", schema["type"].dump());
    if (schema.contains("enum") &&
        std::find(schema["enum"].begin(), schema["enum"].end(), value) == schema["enum"].end())
      return absl::StrCat(at, ": ", value.dump(), " is not among ", schema["enum"].dump());
    if (schema.contains("pattern") &&
        !std::regex_search(value.get<std::string>(), std::regex(std::string(schema["pattern"]))))
      return absl::StrCat(at, ": ", value.dump(), " is not ", schema["pattern"].dump());
    for (const Json& name : schema.value("required", Json::array())) {
      if (!value.contains(name)) return absl::StrCat(at, ": no ", name.dump());
    }
    if (value.is_object()) return CheckObject(schema, value, at);
    if (!value.is_array() || !schema.contains("items")) return "";
    for (const Json& item : value) {
      const std::string wrong = Check(schema["items"], item, at + "[]");
      if (!wrong.empty()) return wrong;
    }
    return "";
  }
  const Json& Ref(const std::string& ref) const {
    return root_.at(nlohmann::json::json_pointer(ref.substr(1)));
  }

 private:
  std::string CheckObject(const Json& schema, const Json& value, const std::string& at) const {
    for (const auto& [name, part] : value.items()) {
      const Json& known = schema.value("properties", Json::object());
      if (known.contains(name)) {
        const std::string wrong = Check(known[name], part, at + "." + name);
        if (!wrong.empty()) return wrong;
      } else if (schema.value("additionalProperties", true) == false) {
        return absl::StrCat(at, ".", name, ": not described");
      }
    }
    return "";
  }
  static bool HasType(const Json& type, const Json& value) {
    if (type.is_array()) {
      for (const Json& one : type) {
        if (HasType(one, value)) return true;
      }
      return false;
    }
    if (type == "integer") return value.is_number_integer();
    return type == (value.is_number() ? "number" : value.type_name());
  }
  const Json& root_;
};
TEST(Http, TheDescriptionIsWhatAnswers) {
  const int port = FreePort();
  RunningServer s(WithHttp(
      port, absl::StrCat(kTwoStages,
                         "policy { spec: \"amro_s\" } policy { spec: \"random\" } experiment { "
                         "name: \"e\" arm { policy: \"amro_s\" } arm { policy: \"random\" } "
                         "shadow: \"random\" }")));
  Caller c(port);
  const Json api = c.Get("/openapi.json").json();
  ASSERT_TRUE(api.is_object());
  EXPECT_EQ(api["openapi"], "3.1.0");
  const Schemas schemas(api);

  std::set<std::string> described, answers;
  for (const auto& [path, methods] : api["paths"].items()) {
    for (const auto& [method, ignored] : methods.items())
      described.insert(absl::StrCat(absl::AsciiStrToUpper(method), " ", path));
  }
  for (const HttpServer::Route& r : HttpServer::Routes()) answers.insert(r.method + " " + r.path);
  EXPECT_EQ(described, answers);

  const Json decision = c.Send("/v1/route", Json{{"task", "math"}, {"unit", "u"}}).json();
  const std::string id = decision["decisions"][0]["id"];
  const auto check = [&](const std::string& path, const std::string& method, const Said& said) {
    const Json& responses = api["paths"][path][method]["responses"];
    const std::string status = absl::StrCat(said.status);
    ASSERT_TRUE(responses.contains(status)) << method << " " << path << ": " << said.text;
    Json response = responses[status];
    if (response.contains("$ref")) response = schemas.Ref(response["$ref"]);
    const Json& content = response["content"];
    if (!content.contains("application/json")) return;
    EXPECT_EQ(schemas.Check(content["application/json"]["schema"], said.json()), "")
        << method << " " << path << ": " << said.text;
  };
  const auto examples = [&](const std::string& path) {
    const Json& media = api["paths"][path]["post"]["requestBody"]["content"]["application/json"];
    for (const auto& [name, example] : media["examples"].items()) {
      Json body = example["value"];
      EXPECT_EQ(schemas.Check(media["schema"], body), "") << path << " " << name;
      if (path == "/v1/explain") body["decision_id"] = id;
      const Said said = c.Send(path, body);
      // Receipts of examples are nobody's, so feedback on them is refused one by one.
      EXPECT_TRUE(said.status == 200 || path == "/v1/feedback") << path << ": " << said.text;
      check(path, "post", said);
    }
    check(path, "post", c.Post(path, "[]"));
  };
  for (const HttpServer::Route& r : HttpServer::Routes()) {
    if (r.method == "POST") {
      examples(r.path);
      continue;
    }
    const bool explains = r.path.find("explain") != std::string::npos;
    const Said said = c.Get(explains ? r.path + "?id=" + id : r.path);
    EXPECT_EQ(said.status, 200) << r.path << ": " << said.text;
    check(r.path, "get", said);
    if (explains) check(r.path, "get", c.Get(r.path + "?id=987654321"));
  }
  c.Send("/v1/feedback", Json{{"receipt", decision["decisions"][0]["receipt"]}, {"quality", 1}});
  check("/v1/explain", "post", c.Send("/v1/explain", Json{{"decision_id", "987654321"}}));

  // Described messages have the fields that they have.
  for (const auto& [name, schema] : api["components"]["schemas"].items()) {
    const auto* type = google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName(
        "sluice.v1." + name);
    if (type == nullptr) continue;
    std::set<std::string> fields, listed;
    for (int i = 0; i < type->field_count(); ++i) fields.insert(type->field(i)->name());
    for (const auto& [field, ignored] : schema["properties"].items()) listed.insert(field);
    EXPECT_EQ(fields, listed) << name;
  }
}
}  // namespace http_test
SLUICE_END_NAMESPACE
