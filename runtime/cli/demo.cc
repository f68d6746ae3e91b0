// Starts a sidecar, sends it real queries' facts, feeds back how they ended, and compares with what
// the baselines get.
#include <unistd.h>

#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/cli/commands.h"
#include "sluice/runtime/cli/local_server.h"
#include "sluice/runtime/service/replay.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
int Demo(const std::string& path, int64_t queries, double cost_weight, int port, bool stay) {
  const auto log = LoadOutcomeLog(path);
  if (!log.ok()) return Fail(log.status());
  const auto server = LocalServer::Start([&](const std::string& folder) {
    std::string config = absl::StrCat(
        "endpoint: \"ipc://", folder, "/sluice\" state { sqlite: \"", folder,
        "/state.db\" } learning { epoch_decisions: 16 publish_ms: 2 } policy { spec: \"",
        kTunedAmroS, ",cost_weight=", cost_weight, "\" } http { port: ", port, " }");
    for (const std::string& t : log->tasks) absl::StrAppend(&config, " task: \"", t, "\"");
    absl::StrAppend(&config, " stage {");
    const auto graph = log->Graph(1);
    for (const Agent& a : graph->stages[0]) {
      absl::StrAppend(&config, " agent { id: \"", a.id, "\" cost_usd: ", a.cost_usd,
                      " latency_s: ", a.latency_s);
      for (double x : a.ability) absl::StrAppend(&config, " ability: ", x);
      absl::StrAppend(&config, " }");
    }
    return config + " }";
  });
  if (!server.ok()) return Fail(server.status());
  const auto client = Client::Connect((*server)->endpoint());
  if (!client.ok()) return Fail(client.status());
  std::printf("serving %zu agents on %s, page on http://127.0.0.1:%d/\n", log->agents.size(),
              (*server)->endpoint().c_str(), port);
  std::unordered_map<std::string, size_t> agent;
  for (size_t a = 0; a < log->agents.size(); ++a) agent.emplace(log->agents[a], a);
  std::vector<size_t> order(log->rows.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  double quality = 0, cost = 0, latency = 0;
  int64_t late = 0;
  const auto begin = std::chrono::steady_clock::now();
  constexpr int64_t kBatch = 8;  // queries that arrive together
  uint64_t last = 0;
  for (int64_t i = 0; i < queries; i += kBatch) {
    v1::Request ask;
    std::vector<const OutcomeLog::Row*> rows;
    for (int64_t k = i; k < std::min(i + kBatch, queries); ++k) {
      const size_t at = static_cast<size_t>(k) % order.size();
      if (at == 0) {
        for (size_t n = order.size() - 1; n > 0; --n)
          std::swap(order[n], order[RandomBits({1, 9, n, static_cast<uint64_t>(k), 0}) % (n + 1)]);
      }
      rows.push_back(&log->rows[order[at]]);
      v1::Query& q = *ask.mutable_route()->add_queries();
      if (rows.back()->intent.empty())
        q.set_task(log->tasks[rows.back()->task]);
      else
        q.mutable_intent()->Add(rows.back()->intent.begin(), rows.back()->intent.end());
    }
    const auto answer = (*client)->Call(ask);
    if (!answer.ok()) return Fail(answer.status());
    v1::Request tell;
    for (size_t k = 0; k < rows.size(); ++k) {
      const v1::Decision& d = answer->route().decisions(static_cast<int>(k));
      if (d.has_error()) return Fail(StatusOf(d.error()));
      const size_t a = agent.at(d.agents(0));
      v1::Outcome& o = *tell.mutable_feedback()->add_outcomes();
      o.set_receipt(d.receipt());
      o.set_quality(rows[k]->quality[a]);
      o.set_cost_usd(rows[k]->cost_usd[a]);
      o.set_latency_s(rows[k]->latency_s[a]);
      if (i >= queries - queries / 3) {
        quality += rows[k]->quality[a];
        cost += rows[k]->cost_usd[a];
        latency += rows[k]->latency_s[a];
        ++late;
      }
      last = d.id();
    }
    const auto done = (*client)->Call(tell);
    if (!done.ok()) return Fail(done.status());
    if (isatty(2) && i % 512 == 0)
      std::fprintf(stderr, "\r%lld of %lld queries\033[K", static_cast<long long>(i),
                   static_cast<long long>(queries));
  }
  if (isatty(2)) std::fprintf(stderr, "\r\033[K");
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  v1::Request ask_stats;
  ask_stats.mutable_stats();
  const auto stats = (*client)->Call(ask_stats);
  if (!stats.ok()) return Fail(stats.status());
  std::printf(
      "%lld queries routed and their outcomes made durable in %.1f s; a decision took %.1f us "
      "(p50), %.1f us (p99)\n\n",
      static_cast<long long>(queries), seconds, stats->stats().decide_p50_us(),
      stats->stats().decide_p99_us());
  const double n = static_cast<double>(std::max<int64_t>(1, late));
  std::printf("last third, cost weight %g      quality  USD/query  latency s  utility\n",
              cost_weight);
  auto row = [&](const char* name, double q, double c, double l) {
    std::printf("%-30s %8.4f %10.6f %10.3f %8.4f\n", name, q, c, l, q - cost_weight * c);
  };
  row("sluice serve, amro_s", quality / n, cost / n, latency / n);
  ReplayOptions o;
  o.cost_weight = cost_weight;
  o.decisions = queries;
  o.predicted_intent = !log->rows[0].intent.empty();
  for (const char* policy : {"random", "round_robin", "best_single", "cost_threshold",
                             "epsilon_greedy", "lin_ucb:width=0", "thompson"}) {
    const auto run = Replay(*log, policy, o, 1);
    if (!run.ok()) return Fail(run.status());
    row(policy, run->quality, run->cost_usd, run->latency_s);
  }
  const Ceilings c = CeilingsOf(*log, cost_weight, 0);
  std::printf(
      "known afterwards: best single %.4f, best of each task %.4f, best of each query %.4f "
      "(utility)\n\n",
      c.best_single, c.task_best, c.oracle);
  std::printf("why decision %llu:\n", static_cast<unsigned long long>(last));
  v1::Request why;
  why.mutable_explain()->set_decision_id(last);
  if (const auto e = (*client)->Call(why); e.ok()) {
    for (const v1::Candidate& x : e->explain().stages(0).candidates()) {
      std::printf("%s %-30s pheromone %9.4g  heuristic %7.4f  p %.4f\n", x.chosen() ? ">" : " ",
                  x.agent().c_str(), x.tau(), x.eta(), x.p());
    }
  }
  if (stay) {
    std::printf("\nserving on; end with Ctrl-C\n");
    std::fflush(stdout);
    (*server)->Wait();
  }
  return 0;
}
}  // namespace

void AddDemo(CLI::App& app, const Exit& exit) {
  auto* s = app.add_subcommand(
      "demo", "Serve, replay an outcome log with feedback, compare with the baselines");
  struct Args {
    std::string log;
    int64_t queries = 20000;
    double cost_weight = 5;
    int port = 8571;
    bool stay = false;
  };
  auto a = std::make_shared<Args>();
  s->add_option("--log", a->log, "as `sluice replay` reads it")->required();
  s->add_option("--queries", a->queries, "how many")
      ->capture_default_str()
      ->check(CLI::Range(3, 10000000));
  s->add_option("--cost-weight", a->cost_weight, "utility lost per USD")->capture_default_str();
  s->add_option("--port", a->port, "of the page")
      ->capture_default_str()
      ->check(CLI::Range(1, 65535));
  s->add_flag("--stay", a->stay, "serve on afterwards");
  s->footer("Example: sluice demo --log examples/agents/pool_a.csv.gz --stay");
  s->callback([=] { exit(Demo(a->log, a->queries, a->cost_weight, a->port, a->stay)); });
}
}  // namespace cli
SLUICE_END_NAMESPACE
