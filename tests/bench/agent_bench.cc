// One decision in the process, without a socket: 3 stages of 12 agents, 8 tasks, and one stage of
// 64 and 1,024. The baseline is `random` over the same graph: walking the stages and drawing,
// without a score.
#include <benchmark/benchmark.h>

#include "absl/strings/str_cat.h"
#include "sluice/routers/builtin.h"
#include "sluice/runtime/store/ledger.h"

namespace {
using namespace sluice;

std::shared_ptr<const AgentGraph> Graph(int stages, int agents) {
  auto g = std::make_shared<AgentGraph>();
  for (int t = 0; t < 8; ++t) g->tasks.push_back(absl::StrCat("task", t));
  for (int s = 0; s < stages; ++s) {
    g->stages.emplace_back();
    for (int a = 0; a < agents; ++a) {
      Agent agent;
      agent.id = absl::StrCat("s", s, "a", a);
      g->stages.back().push_back(agent);
    }
  }
  return g;
}
void DecideIn(std::shared_ptr<const AgentGraph> graph, benchmark::State& state,
              const std::string& spec, bool mixed) {
  auto router = *BuiltinRouters().agents.Create(spec);
  auto plan = *router->MakePlan(graph);
  Ledger ledger(*router, *plan);
  std::vector<SumDelta> deltas;
  std::vector<double> intent(8, mixed ? 0.125 : 0.0);
  if (!mixed) intent[3] = 1;
  AgentRequest q;
  q.intent = intent;
  AgentDecision d;
  for (uint64_t i = 0; i < 500; ++i) {
    q.id = i;
    (void)router->Run(*plan, ledger.State(), q, d, nullptr);
    AgentOutcome o;
    o.intent = intent;
    o.path = absl::MakeConstSpan(d.path.data(), d.stages);
    o.quality = i % 3 > 0;
    o.accepted = i % 3 > 0;
    o.propensity = d.propensity;
    deltas.clear();
    router->Observe(*plan, o, deltas);
    ledger.Add(i / 64, deltas);
  }
  const absl::Span<const double> learned = ledger.State();
  for (auto _ : state) {
    ++q.id;
    benchmark::DoNotOptimize(router->Run(*plan, learned, q, d, nullptr));
  }
}
void Decide(benchmark::State& state, const std::string& spec, bool mixed) {
  DecideIn(Graph(3, 12), state, spec, mixed);
}
void DecideAmong(benchmark::State& state, const std::string& spec) {
  DecideIn(Graph(1, static_cast<int>(state.range(0))), state, spec, false);
}
void Learn(benchmark::State& state) {
  auto router = *BuiltinRouters().agents.Create("amro_s:ability=measured");
  auto plan = *router->MakePlan(Graph(3, 12));
  Ledger ledger(*router, *plan);
  std::vector<SumDelta> deltas;
  const std::vector<double> intent = {0, 0, 0, 1, 0, 0, 0, 0};
  const std::vector<int32_t> path = {1, 14, 30};
  uint64_t i = 0;
  for (auto _ : state) {
    AgentOutcome o;
    o.intent = intent;
    o.path = path;
    o.quality = 1;
    o.accepted = true;
    deltas.clear();
    router->Observe(*plan, o, deltas);
    ledger.Add(++i / 64, deltas);
    if (i % 64 == 0) benchmark::DoNotOptimize(ledger.State().data());
  }
}
BENCHMARK_CAPTURE(Decide, random, "random", false);
BENCHMARK_CAPTURE(Decide, amro_s, "amro_s", false);
BENCHMARK_CAPTURE(Decide, amro_s_mixed_intent, "amro_s", true);
BENCHMARK_CAPTURE(Decide, amro_s_served, "amro_s:pheromone=relative,memory=10000", false);
BENCHMARK_CAPTURE(Decide, thompson, "thompson", false);
BENCHMARK_CAPTURE(Decide, lin_ucb, "lin_ucb", false);
BENCHMARK_CAPTURE(DecideAmong, random, "random")->Arg(64)->Arg(1024);
BENCHMARK_CAPTURE(DecideAmong, amro_s, "amro_s")->Arg(64)->Arg(1024);
BENCHMARK_CAPTURE(DecideAmong, epsilon_greedy, "epsilon_greedy")->Arg(64)->Arg(1024);
BENCHMARK_CAPTURE(DecideAmong, thompson, "thompson")->Arg(64)->Arg(1024);
BENCHMARK_CAPTURE(DecideAmong, lin_ucb, "lin_ucb")->Arg(64)->Arg(1024);
BENCHMARK(Learn);
}  // namespace
BENCHMARK_MAIN();
