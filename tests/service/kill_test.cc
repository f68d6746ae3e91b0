// `sluice serve` and its store are killed again and again while outcomes come in shuffled and
// repeated; what it has learned in the end is what a clean run learns, bit for bit.
// SLUICE_KILL_OUTCOMES sets how many outcomes (default 20,000).
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <deque>
#include <fstream>
#include <functional>
#include <set>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/service/receipt.h"
#include "sluice/runtime/store/ledger.h"
#include "sluice/tests/support/redis_cluster.h"
#include "sluice/tests/support/running_server.h"

SLUICE_BEGIN_NAMESPACE
namespace kill_test {
class Process {
 public:
  explicit Process(std::string config) : config_(std::move(config)) {}
  ~Process() { Kill(); }
  void Start() {
    pid_ = fork();
    if (pid_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (freopen("/dev/null", "w", stdout) == nullptr ||
        freopen("/dev/null", "w", stderr) == nullptr)
      _exit(127);
    execl(SLUICE_BINARY, "sluice", "serve", "--quiet", "--config", config_.c_str(), nullptr);
    _exit(127);
  }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  std::string config_;
  pid_t pid_ = -1;
};
using Clock = std::chrono::steady_clock;

// `state`: of the configuration, given the test's folder. `kill_store`: called at every other
// death, with its number.
void DeathsChangeNothing(const std::function<std::string(const std::string& folder)>& state,
                         const std::function<void(size_t death)>& kill_store) {
  const char* asked = std::getenv("SLUICE_KILL_OUTCOMES");
  const size_t outcomes = asked != nullptr ? std::stoull(asked) : 20000;
  const std::string folder = MakeTempDir(), path = folder + "/config",
                    endpoint = "ipc://" + folder + "/s";
  const std::string graph = absl::StrCat(
      absl::string_view(kTwoStages).substr(0, absl::string_view(kTwoStages).find("learning")));
  // The window covers the whole test: how late an outcome may come is not what is asked here.
  const std::string config = absl::StrCat(
      "endpoint: \"", endpoint, "\" state { ", state(folder), " }", graph,
      "policy { spec: \"amro_s:ability=measured,importance=propensity\" } policy { spec: "
      "\"lin_ucb\" } "
      "learning { epoch_decisions: 1024 window_epochs: 4096 snapshot_every: 3000 }");
  std::ofstream(path) << config;
  Process server(path);
  server.Start();
  Client::Options patient;
  patient.timeout = std::chrono::milliseconds(5000);
  auto client = *Client::Connect(endpoint, patient);

  // Decide first, so that both runs learn of the same decisions.
  std::vector<v1::Outcome> all;
  while (all.size() < outcomes) {
    v1::Request q;
    for (int i = 0; i < 500; ++i)
      q.mutable_route()->add_queries()->set_task(i % 3 == 0 ? "math" : "code");
    const auto r = client->Call(q);
    ASSERT_TRUE(r.ok()) << r.status();
    for (const v1::Decision& d : r->route().decisions()) {
      v1::Outcome& o = all.emplace_back();
      o.set_receipt(d.receipt());
      o.set_quality(RandomUniform({1, d.id(), 0, 0, 0}));
      o.set_cost_usd(0.01 * RandomUniform({2, d.id(), 0, 0, 0}));
      o.set_latency_s(RandomUniform({3, d.id(), 0, 0, 0}));
    }
  }
  all.resize(outcomes);
  for (size_t i = all.size() - 1; i > 0; --i)
    std::swap(all[i], all[RandomBits({4, i, 0, 0, 0}) % (i + 1)]);

  // Send a window of batches; what is not acknowledged in time is sent again, and some that is
  // acknowledged too.
  constexpr size_t kBatch = 64, kWindow = 8;
  std::deque<size_t> todo;
  for (size_t b = 0; b * kBatch < outcomes; ++b) todo.push_back(b);
  std::set<size_t> repeats;
  std::map<uint64_t, std::pair<size_t, Clock::time_point>> sent;
  size_t deaths = 0, duplicates = 0, applied = 0, seen = 0;
  double slowest_restart_ms = 0;
  Clock::time_point restarted{};
  const auto life = [&] {
    return std::chrono::milliseconds(80 + RandomBits({6, deaths, 0, 0, 0}) %
                                              (outcomes > 100000 ? 3000 : 150));
  };
  auto next_death = Clock::now() + std::chrono::milliseconds(60);
  while (!todo.empty() || !sent.empty()) {
    while (!todo.empty() && sent.size() < kWindow) {
      const size_t b = todo.front();
      v1::Request q;
      for (size_t i = b * kBatch; i < std::min(outcomes, (b + 1) * kBatch); ++i)
        *q.mutable_feedback()->add_outcomes() = all[i];
      if (!client->Send(q).ok()) break;
      todo.pop_front();
      sent[q.request_id()] = {b, Clock::now()};
    }
    const auto r = client->Receive(std::chrono::milliseconds(20));
    const auto now = Clock::now();
    if (r.ok()) {
      const auto answered = sent.find(r->request_id());
      if (restarted != Clock::time_point{} && answered != sent.end() &&
          answered->second.second > restarted) {
        slowest_restart_ms = std::max(
            slowest_restart_ms, std::chrono::duration<double, std::milli>(now - restarted).count());
        restarted = {};
        if (deaths % 4 != 3) next_death = now + life();
      }
      const auto at = sent.find(r->request_id());
      if (r->has_error()) {  // a store that is dead keeps nothing, and the server says so
        ASSERT_EQ(r->error().code(), v1::OVERLOADED) << r->error().text();
        if (at != sent.end()) {
          todo.push_front(at->second.first);
          sent.erase(at);
        }
        continue;
      }
      for (const v1::FeedbackResult& f : r->feedback().results()) {
        ASSERT_NE(f.status(), v1::FeedbackResult::REJECTED) << f.reason();
        applied += f.status() == v1::FeedbackResult::APPLIED;
        duplicates += f.status() == v1::FeedbackResult::DUPLICATE;
      }
      if (at != sent.end()) {
        if (++seen % 5 == 0 && repeats.insert(at->second.first).second)
          todo.push_back(at->second.first);
        sent.erase(at);
      }
    }
    for (auto it = sent.begin(); it != sent.end();) {
      if (now - it->second.second > std::chrono::milliseconds(700)) {
        todo.push_front(it->second.first);
        it = sent.erase(it);
      } else {
        ++it;
      }
    }
    if (now > next_death) {
      server.Kill();
      ++deaths;
      if (kill_store && deaths % 2 == 1) kill_store(deaths);
      server.Start();
      restarted = Clock::now();
      // One life in four may end before it has answered, the others some time after: a slow start
      // is no standstill.
      next_death = restarted + (deaths % 4 == 3 ? life() : std::chrono::seconds(30));
    }
  }
  EXPECT_GT(deaths, 0u);
  EXPECT_GT(duplicates, 0u);
  EXPECT_LE(applied, outcomes);

  v1::Request q;
  q.mutable_snapshot()->set_include_state(true);
  const auto end = client->Call(q);
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_EQ(end->snapshot().sequence(), outcomes);

  // The clean run: the same outcomes in order of decision, once each, in memory.
  const auto settings = ParseSettings(config, "test");
  ASSERT_TRUE(settings.ok()) << settings.status();
  std::vector<OutcomeRecord> records;
  for (const v1::Outcome& o : all) {
    OutcomeRecord record;
    record.decision = *ParseDecision(
        absl::string_view(o.receipt()).substr(0, o.receipt().size() - Receipts::kTagBytes));
    record.quality = o.quality();
    record.accepted = o.quality() >= 0.5;
    record.cost_usd = o.cost_usd();
    record.latency_s = o.latency_s();
    // Nobody tells what each call cost: it is shared as the configured costs are.
    double configured = 0;
    const std::vector<int32_t>& path = record.decision.path;
    for (int32_t a : path) configured += settings->policies->graph->agent(a).cost_usd;
    for (int32_t a : path) {
      const double n = static_cast<double>(path.size());
      const double share =
          configured > 0 ? settings->policies->graph->agent(a).cost_usd / configured : 1 / n;
      record.calls.push_back({a, false, o.cost_usd() * share, o.latency_s() * (1 / n)});
    }
    records.push_back(std::move(record));
  }
  std::sort(records.begin(), records.end(),
            [](const auto& a, const auto& b) { return a.decision.id < b.decision.id; });
  for (int p = 0; p < 2; ++p) {
    const PolicySet::Policy& policy = settings->policies->policies[p];
    Ledger ledger(*policy.router, *policy.plan, 4096);
    std::vector<SumDelta> deltas;
    for (const OutcomeRecord& record : records) {
      deltas.clear();
      policy.router->Observe(*policy.plan, record.view(record.shares()), deltas);
      ledger.Add(record.decision.epoch, deltas);
    }
    const auto& got = end->snapshot().policies(p).state();
    const absl::Span<const double> want = ledger.State();
    ASSERT_EQ(static_cast<size_t>(got.size()), want.size());
    EXPECT_EQ(std::memcmp(got.data(), want.data(), want.size() * sizeof(double)), 0) << policy.name;
    EXPECT_EQ(end->snapshot().policies(p).late(), 0u);
  }
  std::printf("%zu outcomes, %zu kills, %zu duplicates; slowest restart to first answer %.0f ms\n",
              outcomes, deaths, duplicates, slowest_restart_ms);
}

TEST(Kill, OfTheServerChangesNothing) {
  DeathsChangeNothing(
      [](const std::string& folder) { return absl::StrCat("sqlite: \"", folder, "/state.db\""); },
      nullptr);
}

TEST(Kill, OfTheServerAndOfRedisChangesNothing) {
  RedisServer redis;
  if (!redis.running()) GTEST_SKIP() << "redis-server is not installed";
  DeathsChangeNothing(
      [&](const std::string&) { return absl::StrCat("redis: \"", redis.address(), "\""); },
      [&](size_t) { redis.Restart(SIGKILL); });
}

TEST(Kill, OfTheServerAndOfAClustersNodeChangesNothing) {
  RedisCluster cluster;
  if (!cluster.installed()) GTEST_SKIP() << "redis-server or redis-cli is not installed";
  ASSERT_TRUE(cluster.running());
  DeathsChangeNothing(
      [&](const std::string&) {
        return absl::StrCat("redis: \"", cluster.address(0), ",", cluster.address(1), ",",
                            cluster.address(2), "\" redis_cluster: true");
      },
      [&](size_t death) {
        if (death > 1) return;
        const int owner = cluster.OwnerOf("{sluice}:log");
        ASSERT_GE(owner, 0);
        cluster.process(owner).End(SIGKILL);
        for (int i = 0; i < 200 && cluster.OwnerOf("{sluice}:log") < 0; ++i) usleep(50'000);
      });
}
}  // namespace kill_test
SLUICE_END_NAMESPACE
