// Starts a sidecar, sends it real queries' facts, feeds back how they ended, and compares with what
// the baselines get.
#include <unistd.h>

#include <memory>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/cli/command.h"
#include "sluice/runtime/cli/demo.h"
#include "sluice/runtime/cli/local_server.h"
#include "sluice/runtime/service/client.h"
#include "sluice/runtime/service/config.h"
#include "sluice/runtime/service/replay.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
constexpr int64_t kBatch = 8;  // queries that arrive together

struct SidecarDemo {
  std::string log = "examples/agents/pool_a.csv.gz";
  int64_t queries = 20000;
  double cost_weight = 5;
  int port = 8571;
  bool stay = false;
};
// Sums over the last third of the queries, when the policy has learned.
struct Earned {
  double quality = 0, cost_usd = 0, latency_s = 0;
  int64_t queries = 0;
  uint64_t last_decision = 0;
};

std::string ServerConfig(const SidecarDemo& demo, const OutcomeLog& log,
                         const std::string& folder) {
  std::string config = absl::StrCat(
      "endpoint: \"ipc://", folder, "/sluice\" state { sqlite: \"", folder,
      "/state.db\" } learning { epoch_decisions: 16 publish_ms: 2 } policy { spec: \"",
      kServedPolicy, ",cost_weight=", demo.cost_weight, "\" } http { port: ", demo.port, " }");
  for (const std::string& t : log.tasks) absl::StrAppend(&config, " task: \"", t, "\"");
  absl::StrAppend(&config, " stage {");
  const auto graph = log.Graph(1);
  for (const Agent& a : graph->stages[0]) {
    absl::StrAppend(&config, " agent { id: \"", a.id, "\" cost_usd: ", a.cost_usd,
                    " latency_s: ", a.latency_s);
    for (double x : a.ability) absl::StrAppend(&config, " ability: ", x);
    absl::StrAppend(&config, " }");
  }
  return config + " }";
}

// The log's rows over and over, each pass in another order.
class Shuffled {
 public:
  explicit Shuffled(const OutcomeLog& log) : log_(log), order_(log.rows.size()) {
    for (size_t i = 0; i < order_.size(); ++i) order_[i] = i;
  }
  const OutcomeLog::Row& operator[](int64_t k) {
    const size_t at = static_cast<size_t>(k) % order_.size();
    if (at == 0) {
      for (size_t n = order_.size() - 1; n > 0; --n) {
        const uint64_t other = RandomBits({1, 9, n, static_cast<uint64_t>(k), 0}) % (n + 1);
        std::swap(order_[n], order_[other]);
      }
    }
    return log_.rows[order_[at]];
  }

 private:
  const OutcomeLog& log_;
  std::vector<size_t> order_;
};

v1::Request AskFor(const OutcomeLog& log, const std::vector<const OutcomeLog::Row*>& rows) {
  v1::Request ask;
  for (const OutcomeLog::Row* row : rows) {
    v1::Query& q = *ask.mutable_route()->add_queries();
    if (row->intent.empty()) {
      q.set_task(log.tasks[row->task]);
    } else {
      q.mutable_intent()->Add(row->intent.begin(), row->intent.end());
    }
  }
  return ask;
}

// Routes every query and tells how it ended.
absl::StatusOr<Earned> RouteAll(const SidecarDemo& demo, const OutcomeLog& log, Client& client) {
  std::unordered_map<std::string, size_t> agent;
  for (size_t a = 0; a < log.agents.size(); ++a) agent.emplace(log.agents[a], a);
  Shuffled shuffled(log);
  Earned e;
  for (int64_t i = 0; i < demo.queries; i += kBatch) {
    std::vector<const OutcomeLog::Row*> rows;
    for (int64_t k = i; k < std::min(i + kBatch, demo.queries); ++k) rows.push_back(&shuffled[k]);
    SLUICE_ASSIGN_OR_RETURN(const v1::Response answer, client.Call(AskFor(log, rows)));
    v1::Request tell;
    for (size_t k = 0; k < rows.size(); ++k) {
      const v1::Decision& d = answer.route().decisions(static_cast<int>(k));
      if (d.has_error()) return StatusOf(d.error());
      const size_t a = agent.at(d.agents(0));
      v1::Outcome& o = *tell.mutable_feedback()->add_outcomes();
      o.set_receipt(d.receipt());
      o.set_quality(rows[k]->quality[a]);
      o.set_cost_usd(rows[k]->cost_usd[a]);
      o.set_latency_s(ZeroIfUnknown(rows[k]->latency_s[a]));
      e.last_decision = d.id();
      if (i < demo.queries - demo.queries / 3) continue;
      e.quality += o.quality();
      e.cost_usd += o.cost_usd();
      e.latency_s += o.latency_s();
      ++e.queries;
    }
    SLUICE_RETURN_IF_ERROR(client.Call(tell).status());
    if (isatty(2) && i % 512 == 0)
      std::fprintf(stderr, "\r%lld of %lld queries\033[K", static_cast<long long>(i),
                   static_cast<long long>(demo.queries));
  }
  if (isatty(2)) std::fprintf(stderr, "\r\033[K");
  return e;
}

// What the sidecar earned, what others earn on the same queries, and what could be earned.
absl::Status PrintComparison(const SidecarDemo& demo, const OutcomeLog& log, const Earned& e) {
  std::printf("last third, cost weight %g      quality  USD/query  latency s  utility\n",
              demo.cost_weight);
  const auto row = [&](const char* name, double quality, double cost, double latency) {
    std::printf("%-30s %8.4f %10.6f %10.3f %8.4f\n", name, quality, cost, latency,
                quality - demo.cost_weight * cost);
  };
  const double n = static_cast<double>(std::max<int64_t>(1, e.queries));
  row("sluice serve, amro_s", e.quality / n, e.cost_usd / n, e.latency_s / n);
  ReplayOptions o;
  o.cost_weight = demo.cost_weight;
  o.decisions = demo.queries;
  o.predicted_intent = !log.rows[0].intent.empty();
  for (const char* policy : {"random", "round_robin", "best_single", "cost_threshold",
                             "epsilon_greedy", "lin_ucb:width=0", "thompson"}) {
    const auto run = Replay(log, policy, o, 1);
    if (!run.ok()) return run.status();
    row(policy, run->quality, run->cost_usd, run->latency_s);
  }
  const Ceilings c = CeilingsOf(log, demo.cost_weight, 0);
  std::printf(
      "known afterwards: best single %.4f, best of each task %.4f, best of each query %.4f "
      "(utility)\n\n",
      c.best_single, c.task_best, c.oracle);
  return absl::OkStatus();
}

void PrintWhy(uint64_t decision, Client& client) {
  std::printf("why decision %llu:\n", static_cast<unsigned long long>(decision));
  v1::Request why;
  why.mutable_explain()->set_decision_id(decision);
  const auto e = client.Call(why);
  if (!e.ok()) return;
  for (const v1::Candidate& x : e->explain().stages(0).candidates()) {
    std::printf("%s %-30s pheromone %9.4g  heuristic %7.4f  p %.4f\n", x.chosen() ? ">" : " ",
                x.agent().c_str(), x.tau(), x.eta(), x.p());
  }
}

absl::Status RunSidecarDemo(const SidecarDemo& demo) {
  SLUICE_ASSIGN_OR_RETURN(const OutcomeLog all, LoadOutcomeLog(demo.log));
  SLUICE_ASSIGN_OR_RETURN(const OutcomeLog log, all.Complete({.cost = true}));
  SLUICE_ASSIGN_OR_RETURN(const auto server, LocalServer::Start([&](const std::string& folder) {
                            return ServerConfig(demo, log, folder);
                          }));
  SLUICE_ASSIGN_OR_RETURN(const auto client, Client::Connect(server->endpoint()));
  std::printf("serving %zu agents on %s, page on http://127.0.0.1:%d/\n", log.agents.size(),
              server->endpoint().c_str(), demo.port);
  const auto begin = std::chrono::steady_clock::now();
  SLUICE_ASSIGN_OR_RETURN(const Earned earned, RouteAll(demo, log, *client));
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  v1::Request ask_stats;
  ask_stats.mutable_stats();
  SLUICE_ASSIGN_OR_RETURN(const v1::Response stats, client->Call(ask_stats));
  std::printf(
      "%lld queries routed and their outcomes made durable in %.1f s; a decision took %.1f us "
      "(p50), %.1f us (p99)\n\n",
      static_cast<long long>(demo.queries), seconds, stats.stats().decide_p50_us(),
      stats.stats().decide_p99_us());
  SLUICE_RETURN_IF_ERROR(PrintComparison(demo, log, earned));
  PrintWhy(earned.last_decision, *client);
  if (demo.stay) {
    std::printf("\nserving on; end with Ctrl-C\n");
    std::fflush(stdout);
    server->Wait();
  }
  return absl::OkStatus();
}
}  // namespace

std::function<int()> AddSidecarDemo(CLI::App& demo, CLI::Option* sidecar) {
  auto a = std::make_shared<SidecarDemo>();
  CLI::App* group = demo.add_option_group("sidecar", "with --sidecar");
  group->add_option("--log", a->log, "as `sluice replay` reads it")->capture_default_str();
  group->add_option("--queries", a->queries, "how many")
      ->capture_default_str()
      ->check(Allowed<int64_t>(3, 10000000));
  group->add_option("--cost-weight", a->cost_weight, "utility lost per USD")
      ->capture_default_str()
      ->check(Allowed(0.0, 1e9));
  group->add_option("--port", a->port, "of the page")
      ->capture_default_str()
      ->check(Allowed(1, 65535));
  group->add_flag("--stay", a->stay, "serve on afterwards");
  for (CLI::Option* o : group->get_options({})) o->needs(sidecar);
  return [a] { return Done(RunSidecarDemo(*a)); };
}
}  // namespace cli
SLUICE_END_NAMESPACE
