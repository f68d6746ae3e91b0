// What AMRO-S (arXiv 2603.12933) has to learn in a world of known success probabilities: three
// tasks, three stages.
#include <gtest/gtest.h>

#include "sluice/tests/support/agent_simulator.h"

SLUICE_BEGIN_NAMESPACE
namespace {
// For a world that changes: ability measured over a short memory with optimism, deposits divided by
// propensity.
const std::string kServed =
    "amro_s:ability=measured,optimism=0.14,prior=1,memory=200,alpha=0.5,beta=20,importance="
    "propensity,evaporate=row,"
    "rho=0.002,rho_by_intent=true";
AgentWorld World(uint64_t seed) { return MakeWorld(3, {4, 6, 5}, seed); }

TEST(AgentLearning, FindsTheBestPathOfEveryTask) {
  double share = 0, early = 0, late = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    SimulatorOptions o;
    o.seed = seed;
    o.warm_up = 600;
    o.queries = 2500;
    const SimulatorRun run = Simulate(kServed, World(seed), o);
    int64_t best = 0;
    for (size_t i = 2000; i < 2500; ++i) best += run.success[i] == run.best[i];
    share += static_cast<double>(best) / 500 / 5;
    early += run.Regret(0, 1000);
    late += run.Regret(1000, 2000);
    EXPECT_GE(best, 350) << "seed " << seed;
  }
  EXPECT_GE(share, 0.9);
  EXPECT_LT(late, 0.6 * early) << "regret grows linearly";
}

TEST(AgentLearning, SpecialistsDoNotDisturbEachOther) {
  double own = 0, shared = 0, own_single = 0, shared_single = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    SimulatorOptions o;
    o.seed = seed;
    o.warm_up = 600;
    own += Simulate(kServed, World(seed), o).Mean(1000, 2000) / 5;
    o.one_task = true;
    shared += Simulate(kServed, World(seed), o).Mean(1000, 2000) / 5;
    const AgentWorld single = MakeWorld(1, {4, 6, 5}, seed);
    shared_single += Simulate(kServed, single, o).Mean(1000, 2000) / 5;
    o.one_task = false;
    own_single += Simulate(kServed, single, o).Mean(1000, 2000) / 5;
  }
  EXPECT_GE(own, shared + 0.10);
  EXPECT_NEAR(own_single, shared_single, 0.01);
}

TEST(AgentLearning, TheGateKeepsFastWrongAnswersOut) {
  // In every stage one agent is ten times faster and wrong half as often right.
  double gated = 0, open = 0;
  const std::string spec = "amro_s:rho=0.02,base_cost=0.1,latency_weight=1,beta=1,load_weight=0";
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    AgentWorld w = World(seed);
    for (int s = 0; s < 3; ++s) {
      const auto fast = static_cast<size_t>(w.graph->first_agent(s) + 3);
      w.latency[fast] = 0.1;
      for (auto& task : w.success) task[fast] = 0.3;
    }
    SimulatorOptions o;
    o.seed = seed;
    o.queries = 3000;
    gated += Simulate(spec, w, o).Mean(2000, 3000) / 5;
    o.false_accept = 1;
    open += Simulate(spec, w, o).Mean(2000, 3000) / 5;
  }
  EXPECT_GE(gated, open + 0.10);
}

TEST(AgentLearning, FollowsAnExchangeOfAbilities) {
  double share = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    SimulatorOptions o;
    o.seed = seed;
    o.warm_up = 600;
    o.queries = 3500;
    o.before = [](size_t i, AgentWorld& w) {
      if (i != 1500) return;
      for (int t = 0; t < 3;
           ++t) {  // the task's best agent of the middle stage changes places with another
        const size_t first = 4, best = first + static_cast<size_t>((t + 1) % 6),
                     other = first + static_cast<size_t>((t + 3) % 6);
        std::swap(w.success[t][best], w.success[t][other]);
      }
    };
    const SimulatorRun run = Simulate(kServed, World(seed), o);
    double best = 0;
    for (size_t i = 3000; i < 3500; ++i) best += run.best[i] / 500;
    share += run.Mean(3000, 3500) / best / 5;
    EXPECT_GE(run.Mean(3000, 3500), 0.85 * best) << "seed " << seed;
  }
  EXPECT_GE(share, 0.95);
}

TEST(AgentLearning, WrongIntentsCostLessThanHalf) {
  double clean = 0, corrupt = 0, random = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    SimulatorOptions o;
    o.seed = seed;
    o.warm_up = 600;
    clean += Simulate(kServed, World(seed), o).Mean(1000, 2000) / 5;
    random += Simulate("random", World(seed), o).Mean(1000, 2000) / 5;
    o.corrupt_intent = 0.2;
    corrupt += Simulate(kServed, World(seed), o).Mean(1000, 2000) / 5;
  }
  EXPECT_GT(corrupt, random + 0.1);
  // A fifth of the queries is sent wrong and teaches wrong; more than half of what routing gains
  // must stay.
  EXPECT_GT(corrupt, random + 0.5 * (clean - random)) << clean << " clean, " << random << " random";
}
}  // namespace
SLUICE_END_NAMESPACE
