// Who may speak to the sidecar, and what it refuses to take for a default.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <thread>

#include "sluice/runtime/service/endpoint.h"
#include "sluice/tests/support/ask_server.h"
#include "sluice/tests/support/raw_socket.h"
#include "sluice/tests/support/running_server.h"

SLUICE_BEGIN_NAMESPACE
namespace door_test {
using testing::HasSubstr;
using testing::Not;

int PortOf(const std::string& endpoint) {
  return std::atoi(endpoint.substr(endpoint.rfind(':') + 1).c_str());
}

// A frame of ZMTP 1.0: length, flags, body. The peer greets with its identity, here none.
std::string OldFrame(const std::string& body) {
  return std::string(1, static_cast<char>(body.size() + 1)) + std::string(1, '\0') + body;
}

TEST(Door, PeersWithoutAVersionAreTurnedAway) {
  RunningServer s(
      absl::StrCat("endpoint: \"tcp://127.0.0.1:*\" policy { spec: \"random\" } policy "
                   "{ name: \"evil\" spec: \"round_robin\" }",
                   kTwoStages));
  const int port = PortOf(s.server().endpoints()[0]);
  v1::Request q;
  q.set_version(1);
  q.mutable_set_policy()->set_name("evil");
  const std::string command = OldFrame(q.SerializeAsString());
  // As a peer of ZMTP 1.0 sends it, with an anonymous and with a named greeting; as a page's POST
  // carries it, padded so that it starts where the headers' bytes end as frames.
  std::vector<std::string> tries = {OldFrame("") + command, OldFrame("page") + command};
  for (int pad = 290; pad < 310; ++pad)
    tries.push_back("POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n\r\n" +
                    std::string(static_cast<size_t>(pad), '\1') + command);
  for (const std::string& bytes : tries) {
    Raw page(port);
    page.Say(bytes);
    page.Hear(50);
  }
  auto c = s.Connect();
  EXPECT_EQ(StatsOf(*c).policy(), "random");
  EXPECT_EQ(StatsOf(*c).malformed(), 0u) << "not even read as messages";
  EXPECT_TRUE(c->Route(Math()).ok());
}

TEST(Door, ACurveServerTakesNobodyInTheClearAndForgetsRemovedKeys) {
  const CurveFiles files;
  const CurveKeys friendly = *NewCurveKeys();
  const CurveKeys stranger = *NewCurveKeys();
  files.Allow({friendly});
  RunningServer s(absl::StrCat("endpoint: \"tcp://127.0.0.1:*\"\n", kTwoStages, files.Config()));
  Client::Options options = files.Options(friendly);
  options.timeout = std::chrono::milliseconds(5000);
  options.tries = 1;
  auto known = s.Connect(options);
  ASSERT_TRUE(known->Route(Math()).ok());

  Client::Options wrong = files.Options(stranger);
  wrong.tries = 1;
  wrong.timeout = std::chrono::milliseconds(500);
  EXPECT_FALSE(s.Connect(wrong)->Route(Math()).ok());
  for (int i = 0; i < 400 && StatsOf(*known).refused() == 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_GT(StatsOf(*known).refused(), 0u);
  EXPECT_THAT(s.log(), HasSubstr("connections refused"));

  // The connection is there already; the key goes.
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  files.Allow({stranger});
  absl::Status status;
  for (int i = 0; i < 400 && status.ok(); ++i) {
    status = known->Route(Math()).status();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << status;
}

TEST(Door, TheRateLimitOutlivesAConnection) {
  RunningServer s(
      absl::StrCat("endpoint: \"tcp://127.0.0.1:*\" limits { requests_per_s: 1 burst: 5 "
                   "}",
                   kTwoStages));
  Client::Options options;
  options.tries = 1;
  int served = 0;
  for (int i = 0; i < 20; ++i) served += s.Connect(options)->Route(Math()).ok();
  EXPECT_GE(served, 5);
  EXPECT_LE(served, 8);
}

TEST(Door, APortAndAPathBelongToOneServer) {
  const std::string folder = MakeTempDir();
  const int port = FreePort();
  const auto config = [&](const std::string& socket) {
    return absl::StrCat("endpoint: \"ipc://", folder, "/", socket, "\" http { port: ", port, " }",
                        kTwoStages);
  };
  RunningServer first(config("a"));
  const auto second = [&](const std::string& text) {
    auto settings = ParseSettings(text, "test");
    EXPECT_TRUE(settings.ok()) << settings.status();
    return Server::Create(*std::move(settings), {}).status();
  };
  EXPECT_THAT(std::string(second(config("b")).message()), HasSubstr("cannot listen"));
  const absl::Status same = second(absl::StrCat("endpoint: \"ipc://", folder, "/a\"", kTwoStages));
  EXPECT_EQ(same.code(), absl::StatusCode::kAlreadyExists) << same;
  EXPECT_TRUE(first.Connect()->Route(Math()).ok());
}

std::string Http(int port, const std::string& headers, const std::string& path = "/api/stats") {
  Raw client(port);
  client.Say("GET " + path + " HTTP/1.1\r\nConnection: close\r\n" + headers + "\r\n");
  return client.Hear();
}

TEST(Door, PagesOfOthersReadNothing) {
  const int port = FreePort();
  RunningServer s(
      absl::StrCat("http { port: ", port, " allow_host: \"sluice.internal\" }", kTwoStages));
  const std::string at = absl::StrCat(":", port, "\r\n");
  for (const std::string& good :
       {"Host: 127.0.0.1" + at, "Host: localhost" + at, "Host: LOCALHOST" + at, "Host: [::1]" + at,
        "Host: sluice.internal" + at,
        absl::StrCat("Host: localhost:", port, "\r\nOrigin: http://localhost:", port, "\r\n")})
    EXPECT_THAT(Http(port, good), HasSubstr(" 200 ")) << good;
  for (const std::string& bad : {"Host: evil.example" + at, "Host: 127.0.0.1.evil.example" + at,
                                 std::string(), "Host: localhost.evil.example" + at, "Host: " + at,
                                 "Host: localhost" + at + "Origin: http://evil.example\r\n",
                                 "Host: localhost" + at + "Origin: null\r\n",
                                 "Host: localhost" + at + "Origin: http://localhost:1\r\n"}) {
    EXPECT_THAT(Http(port, bad), HasSubstr(" 403 ")) << bad;
    EXPECT_THAT(Http(port, bad), Not(HasSubstr("decisions"))) << bad;
  }
}

TEST(Door, ProbesDoNotWaitForThoseWhoSayNothing) {
  const int port = FreePort();
  RunningServer s(absl::StrCat("http { port: ", port, " }", kTwoStages));
  std::vector<std::unique_ptr<Raw>> idle;
  for (int i = 0; i < 300; ++i) idle.push_back(std::make_unique<Raw>(port));
  for (int i = 0; i < 5; ++i)
    EXPECT_THAT(Http(port, "Host: localhost\r\n", "/healthz"), HasSubstr(" 200 "));
}

TEST(Door, TheDefaultEndpointIsThisUsersAlone) {
  const std::string folder = MakeTempDir();
  ASSERT_EQ(setenv("XDG_RUNTIME_DIR", folder.c_str(), 1), 0);
  const auto settings = ParseSettings(kTwoStages, "s");
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->config.endpoint(0), "ipc://" + folder + "/sluice.sock");
  EXPECT_TRUE(MakeDefaultFolder().ok());
  ASSERT_EQ(chmod(folder.c_str(), 0777), 0);
  EXPECT_EQ(MakeDefaultFolder().code(), absl::StatusCode::kPermissionDenied);
  ASSERT_EQ(chmod(folder.c_str(), 0700), 0);
  unsetenv("XDG_RUNTIME_DIR");
  EXPECT_EQ(DefaultEndpoint(), absl::StrCat("ipc:///tmp/sluice-", getuid(), "/sluice.sock"));
}

TEST(Configuration, NothingInvalidMeansDefault) {
  const auto error = [](const std::string& more) {
    const std::string base = "task: \"a\" stage { agent { id: \"x\" } agent { id: \"y\" } } ";
    return std::string(ParseSettings(base + more, "s").status().message());
  };
  EXPECT_EQ(error(""), "");
  // What is written counts, zero too.
  EXPECT_EQ(error("learning { gate: 0 commit_ms: 0 }"), "");
  const auto settings =
      ParseSettings("task: \"a\" stage { agent { id: \"x\" } } learning { gate: 0 }", "s");
  ASSERT_TRUE(settings.ok());
  EXPECT_EQ(settings->config.learning().gate(), 0);
  const std::pair<const char*, const char*> kBad[] = {
      {"learning { gate: nan }", "learning.gate: nan is outside [0, 1]"},
      {"learning { gate: -0.1 }", "outside [0, 1]"},
      {"learning { epoch_decisions: 0 }", "learning.epoch_decisions: 0 is outside"},
      {"learning { window_epochs: 0 }", "window_epochs"},
      {"learning { publish_ms: 0 }", "publish_ms"},
      {"learning { commit_ms: 60000 }", "commit_ms: 60000 is outside [0, 1000]"},
      {"limits { max_batch: 0 }", "max_batch"},
      {"limits { feedback_queue: 0 }", "feedback_queue"},
      {"limits { requests_per_s: 5 burst: 0 }", "burst"},
      {"limits { explained_decisions: 0 }", "explained_decisions"},
      {"breaker { failures: 0 }", "breaker.failures: 0"},
      {"breaker { failures: 4294967295 }", "breaker.failures: 4294967295 is outside"},
      {"breaker { probes: 0 }", "probes"},
      {"breaker { cooldown_s: nan }", "cooldown_s: nan"},
      {"breaker { cooldown_s: 0 }", "cooldown_s: 0"},
      {"breaker { cooldown_s: inf }", "cooldown_s: inf"},
      {"http { port: 70000 }", "http.port: 70000"},
      {"http { host: \"no such host\" }", "http.host: 'no such host'"},
      {"experiment { name: \"e\" effect: nan }", "experiment.effect: nan"},
      {"experiment { name: \"e\" effect: 0 }", "experiment.effect: 0"},
      {"experiment { arm { policy: \"amro_s\" } arm { policy: \"amro_s\" } }",
       "2 arms without a name"},
      {"experiment { name: \"e\" guardrail { worse_by: nan } }", "worse_by: nan"},
      {"curve { allow_file: \"/dev/null\" }", "allow_file without secret_key_file"},
      {"curve { secret_key_file: \"/none\" allow_file: \"/none\" }", "curve.secret_key_file"},
      {"intent { model: \"/none.gguf\" }", "intent.model"},
      {"endpoint: \"tcp://localhost\"", "wanted tcp://HOST:PORT"},
      {"endpoint: \"tcp://localhost:99999\"", "wanted tcp://HOST:PORT"},
      {"endpoint: \"tcp://:5571\"", "wanted tcp://HOST:PORT"},
      {"endpoint: \"http://localhost:1\"", "allowed: tcp://HOST:PORT, ipc://PATH"},
      {"endpoint: \"ipc://\"", "wanted ipc://PATH"},
      {"endpoint: \"ipc:///etc/passwd\"", "names a file that is no socket"},
  };
  for (const auto& [text, why] : kBad) EXPECT_THAT(error(text), HasSubstr(why)) << text;
  for (const char* budget : {"-1", "nan", "inf", "-inf"}) {
    const auto s = ParseSettings(absl::StrCat("task: \"a\" stage { agent { id: \"x\" "
                                              "budget_usd_per_hour: ",
                                              budget, " } }"),
                                 "s");
    EXPECT_THAT(std::string(s.status().message()), HasSubstr("'x': budget_usd_per_hour")) << budget;
  }
}

TEST(Requests, NothingInvalidMeansDefault) {
  RunningServer s(absl::StrCat(kTwoStages, "policy { spec: \"lin_ucb:width=3\" }"));
  auto c = s.Connect();
  const auto ask = [&](const std::function<void(v1::Query&)>& fill) {
    v1::Query q = Math();
    for (float x : {1.0f, 0.5f, 0.25f}) q.add_features(x);
    fill(q);
    return c->Route(q);
  };
  const auto good = ask([](v1::Query&) {});
  ASSERT_TRUE(good.ok()) << good.status();
  constexpr double kInf = std::numeric_limits<double>::infinity();
  for (double cost : {-1.0, -0.0001, double{NAN}, kInf, -kInf})
    EXPECT_THAT(
        std::string(ask([&](v1::Query& q) { q.set_max_cost_usd(cost); }).status().message()),
        HasSubstr("max_cost_usd"))
        << cost;
  for (float x : {NAN, HUGE_VALF, -HUGE_VALF})
    EXPECT_THAT(std::string(ask([&](v1::Query& q) { q.set_features(1, x); }).status().message()),
                HasSubstr("no finite number"));
  EXPECT_THAT(std::string(ask([](v1::Query& q) { q.add_features(1); }).status().message()),
              HasSubstr("4 features, wanted 3"));
  EXPECT_THAT(
      std::string(ask([](v1::Query& q) { q.mutable_features()->RemoveLast(); }).status().message()),
      HasSubstr("2 features, wanted 3"));

  for (double latency : {-1.0, double{NAN}, kInf}) {
    v1::Outcome o;
    o.set_receipt(good->receipt());
    o.set_quality(1);
    v1::AgentReport& report = *o.add_agents();
    report.set_agent(good->agents(0));
    report.set_latency_s(latency);
    const auto told = c->Feedback(o);
    ASSERT_TRUE(told.ok()) << told.status();
    EXPECT_EQ(told->status(), v1::FeedbackResult::REJECTED) << latency;
    EXPECT_THAT(told->reason(), HasSubstr("latency_s"));
  }
}
}  // namespace door_test
SLUICE_END_NAMESPACE
