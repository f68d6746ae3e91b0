#ifndef SLUICE_TESTS_SUPPORT_AGENT_SIMULATOR_H_
#define SLUICE_TESTS_SUPPORT_AGENT_SIMULATOR_H_
// A world of agents with known success probabilities: a path succeeds when all of its stages do.
#include <functional>
#include <vector>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
struct AgentWorld {
  std::shared_ptr<AgentGraph> graph;
  std::vector<std::vector<double>> success;  // [task][agent]
  std::vector<double> latency;               // [agent] seconds

  double PathSuccess(int task, absl::Span<const int32_t> path) const {
    double p = 1;
    for (int32_t a : path) p *= success[task][a];
    return p;
  }
  std::vector<int32_t> BestPath(int task) const {
    std::vector<int32_t> path;
    for (int s = 0; s < graph->num_stages(); ++s) {
      const auto first = static_cast<int32_t>(graph->first_agent(s));
      int32_t best = first;
      for (int32_t a = first; a < first + graph->stage_size(s); ++a) {
        if (success[task][a] > success[task][best]) best = a;
      }
      path.push_back(best);
    }
    return path;
  }
};
// Tasks whose best agents differ in every stage: .95 for the task's own, .55 to .75 for the others.
inline AgentWorld MakeWorld(int tasks, const std::vector<int>& sizes, uint64_t seed) {
  AgentWorld w;
  w.graph = MakeGraph(tasks, sizes);
  w.latency.assign(w.graph->num_agents(), 1.0);
  for (int t = 0; t < tasks; ++t) {
    w.success.emplace_back(w.latency.size());
    for (size_t a = 0; a < w.latency.size(); ++a) {
      w.success[t][a] = 0.55 + 0.2 * RandomUniform({seed, static_cast<uint64_t>(t), a, 0, 0});
    }
    for (int s = 0; s < w.graph->num_stages(); ++s) {
      w.success[t][w.graph->first_agent(s) + (t + s) % sizes[s]] = 0.95;
    }
  }
  return w;
}

struct SimulatorRun {
  std::vector<double> success, best;  // per query: of the chosen path, of the best path
  double Mean(size_t from, size_t to) const {
    double sum = 0;
    for (size_t i = from; i < to; ++i) sum += success[i];
    return sum / static_cast<double>(to - from);
  }
  double Regret(size_t from, size_t to) const {
    double sum = 0;
    for (size_t i = from; i < to; ++i) sum += best[i] - success[i];
    return sum;
  }
};
struct SimulatorOptions {
  size_t queries = 2000, warm_up = 0;
  uint64_t seed = 1, batch = 8;  // queries an epoch
  bool one_task = false;         // the router sees one task only
  double false_accept = 0;       // share of failed answers that the gate lets through
  double corrupt_intent = 0;     // share of queries whose intent names another task
  std::function<void(size_t, AgentWorld&)> before;  // before query i
};
// Routes, lets the world answer, feeds back. Warm-up: paths drawn uniformly with true labels.
inline SimulatorRun Simulate(const std::string& spec, AgentWorld world, const SimulatorOptions& o) {
  SimulatorRun run;
  auto graph = world.graph;
  const int tasks = static_cast<int>(graph->num_tasks());
  if (o.one_task) {
    graph = std::make_shared<AgentGraph>(*graph);
    graph->tasks = {"everything"};
    for (auto& stage : graph->stages) {
      for (Agent& a : stage)
        a.ability = a.ability.empty() ? a.ability : std::vector<double>{a.ability[0]};
    }
  }
  AgentUnderTest router(
      absl::StrCat(spec, spec.find(':') == std::string::npos ? ":" : ",", "seed=", o.seed), graph);
  for (size_t i = 0; i < o.warm_up + o.queries; ++i) {
    const bool warm = i < o.warm_up;
    if (!warm && o.before) o.before(i - o.warm_up, world);
    auto draw = [&](uint64_t unit) { return RandomUniform({o.seed, i, 99, unit, 0}); };
    const int task = static_cast<int>(draw(0) * tasks);
    std::vector<double> intent(o.one_task ? 1 : static_cast<size_t>(tasks), 0.0);
    const int named = o.one_task ? 0 : draw(1) < o.corrupt_intent ? (task + 1) % tasks : task;
    intent[named] = 1;
    std::vector<int32_t> path;
    double propensity = 1;
    if (warm) {
      for (int s = 0; s < graph->num_stages(); ++s) {
        path.push_back(static_cast<int32_t>(
            graph->first_agent(s) + static_cast<int64_t>(draw(20 + s) * graph->stage_size(s))));
        propensity /= graph->stage_size(s);
      }
    } else {
      const AgentDecision d = router.Route(i, intent);
      path.assign(d.path.begin(), d.path.begin() + d.stages);
      propensity = d.propensity;
      run.success.push_back(world.PathSuccess(task, path));
      run.best.push_back(world.PathSuccess(task, world.BestPath(task)));
    }
    const bool right = draw(2) < world.PathSuccess(task, path);
    const bool accepted = right || draw(3) < o.false_accept;
    double latency = 0;
    for (int32_t a : path) latency += world.latency[a];
    router.Learn(intent, path, accepted ? 1 : 0, accepted, 0, latency, propensity,
                 static_cast<int64_t>(i / o.batch));
  }
  return run;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_AGENT_SIMULATOR_H_
