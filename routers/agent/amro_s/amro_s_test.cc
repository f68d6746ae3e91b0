#include "sluice/routers/agent/amro_s/amro_s.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/agent/amro_s/amro_s_reference.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
namespace {
// Agents of stage s are numbered from here in MakeGraph(2, {3, 4}).
constexpr int32_t kSecond = 3;
double Tau(AgentUnderTest& a, int t, int64_t edge) {
  return a.state()[t * a.graph().num_edges() + edge];
}

TEST(AmroS, MicroCase) {  // w = (1, 0), rho .1, Q 1, f 4, tau 1: .9 + .25 = 1.15; tau of the other
                          // task .9, or 1.0
  const std::string spec = "amro_s:rho=0.1,base_cost=0,latency_weight=1,epsilon=1e-9";
  AgentUnderTest written(spec, MakeGraph(2, {2})),
      scaled(spec + ",rho_by_intent=true", MakeGraph(2, {2}));
  written.Learn({1, 0}, {0}, 1, true, 0, 4);
  scaled.Learn({1, 0}, {0}, 1, true, 0, 4);
  EXPECT_NEAR(Tau(written, 0, 0), 1.15, 1e-8);
  EXPECT_NEAR(Tau(written, 1, 0), 0.9, 1e-8);
  EXPECT_NEAR(Tau(scaled, 0, 0), 1.15, 1e-8);
  EXPECT_EQ(Tau(scaled, 1, 0), 1.0);
}

TEST(AmroS, EpochsOfOneOutcomeAreTheReference) {
  for (bool by_intent : {false, true}) {
    AgentUnderTest a(
        std::string("amro_s:rho=0.05,alpha=1.5,beta=2,load_weight=0,base_cost=0.5,cost_weight=3") +
            (by_intent ? ",rho_by_intent=true" : ""),
        MakeGraph(2, {3, 4}));
    AmroSReference ref(2, {3, 4}, 1.0);
    ref.rho = 0.05;
    ref.alpha = 1.5;
    ref.rho_by_intent = by_intent;
    for (uint64_t i = 0; i < 300; ++i) {
      auto draw = [&](uint64_t unit) { return RandomUniform({5, i, 0, unit, 0}); };
      const double w0 = draw(0);
      const int x = static_cast<int>(draw(1) * 3), y = static_cast<int>(draw(2) * 4);
      const double cost = draw(3);
      a.Learn({w0, 1 - w0}, {x, kSecond + y}, 1, draw(4) < 0.7, cost);
      ref.Update({w0, 1 - w0}, {x, y}, draw(4) < 0.7, 0.5 + 3 * cost + 1e-6);
    }
    for (int t = 0; t < 2; ++t) {
      for (int j = 0; j < 3; ++j) EXPECT_NEAR(Tau(a, t, j), ref.tau[t][0][0][j], 1e-6);
      for (int e = 0; e < 12; ++e) EXPECT_NEAR(Tau(a, t, 3 + e), ref.tau[t][1][e / 4][e % 4], 1e-6);
    }
    AgentTrace trace;
    const AgentDecision d = a.Route(9, {0.3, 0.7}, &trace);
    // Ability is equal, so eta is 1 for everyone.
    const auto p0 = ref.Transition({0.3, 0.7}, 0, 0, {{1, 1, 1}, {1, 1, 1}});
    const auto p1 = ref.Transition({0.3, 0.7}, 1, d.path[0], {{1, 1, 1, 1}, {1, 1, 1, 1}});
    for (int j = 0; j < 3; ++j) EXPECT_NEAR(trace[j].p, p0[j], 1e-5);
    for (int j = 0; j < 4; ++j) EXPECT_NEAR(trace[3 + j].p, p1[j], 1e-5);
    EXPECT_NEAR(d.propensity, p0[d.path[0]] * p1[d.path[1] - kSecond], 1e-6);
  }
}

TEST(AmroS, OneHotIntentIsTheSpecialistAlone) {
  AgentUnderTest a("amro_s:load_weight=0", MakeGraph(2, {3}));
  for (int i = 0; i < 50; ++i) {
    a.Learn({1, 0}, {0}, 1, true);
    a.Learn({0, 1}, {2}, 1, true);
  }
  AgentTrace trace;
  a.Route(1, {0, 1}, &trace);
  for (int j = 0; j < 3; ++j) EXPECT_FLOAT_EQ(trace[j].tau, static_cast<float>(Tau(a, 1, j)));
}

TEST(AmroS, ExponentsOfZeroLeaveOneFactor) {
  auto graph = MakeGraph(1, {3});
  for (int j = 0; j < 3; ++j) graph->stages[0][j].ability = {0.2 + 0.3 * j};
  AgentUnderTest heuristic("amro_s:alpha=0,beta=1,load_weight=0", graph),
      pheromone("amro_s:beta=0", graph);
  heuristic.Learn({1}, {0}, 1, true);
  pheromone.Learn({1}, {0}, 1, true);
  AgentTrace h, t;
  heuristic.Route(1, {1}, &h);
  pheromone.Route(1, {1}, &t);
  EXPECT_NEAR(h[0].p, 0, 1e-7);  // min-max: 0, .5, 1
  EXPECT_NEAR(h[1].p, 1.0 / 3, 1e-6);
  const double tau = 0.98 + 1;
  EXPECT_NEAR(t[0].p, tau / (tau + 2), 1e-5);
  EXPECT_NEAR(t[1].p, 1 / (tau + 2), 1e-5);
}

TEST(AmroS, AClosedGateLeavesPheromoneAsItIs) {
  AgentUnderTest a("amro_s", MakeGraph(2, {3, 4}));
  a.Learn({0.5, 0.5}, {1, kSecond}, 1, true);
  const std::vector<double> before(a.state().begin(),
                                   a.state().begin() + 2 * a.graph().num_edges());
  for (int i = 0; i < 100; ++i) a.Learn({0.5, 0.5}, {i % 3, kSecond + i % 4}, 0, false, 0.1, 2);
  const std::vector<double> after(a.state().begin(), a.state().begin() + 2 * a.graph().num_edges());
  EXPECT_EQ(before, after);
}

TEST(AmroS, AnUpdateTouchesThePathOnly) {
  AgentUnderTest a("amro_s", MakeGraph(2, {3, 4}));
  a.Learn({0.5, 0.5}, {1, kSecond + 2}, 1, true);
  for (int t = 0; t < 2; ++t) {
    for (int64_t e = 0; e < a.graph().num_edges(); ++e) {
      const bool on_path = e == 1 || e == 3 + 1 * 4 + 2;
      EXPECT_EQ(Tau(a, t, e) != 1.0, on_path) << "task " << t << " edge " << e;
    }
  }
}

TEST(AmroS, EvaporationReachesItsEdges) {
  AgentUnderTest row("amro_s:evaporate=row", MakeGraph(1, {2, 2})),
      all("amro_s:evaporate=global", MakeGraph(1, {2, 2}));
  row.Learn({1}, {0, 2}, 1, true);
  all.Learn({1}, {0, 2}, 1, true);
  // Edges: source to 0, 1; then 0 -> 2, 3 and 1 -> 2, 3.
  EXPECT_NEAR(Tau(row, 0, 1), 0.98, 1e-8);
  EXPECT_NEAR(Tau(row, 0, 3), 0.98, 1e-8);
  EXPECT_EQ(Tau(row, 0, 4), 1.0);
  EXPECT_NEAR(Tau(all, 0, 4), 0.98, 1e-8);
}

TEST(AmroS, AnEpochOfEqualDepositsEqualsThemOneByOne) {
  AgentUnderTest one("amro_s:rho=0.1", MakeGraph(1, {2})),
      batch("amro_s:rho=0.1", MakeGraph(1, {2}));
  for (int i = 0; i < 20; ++i) {
    one.Learn({1}, {0}, 1, true);
    batch.Learn({1}, {0}, 1, true, 0, 0, 1, 3);
  }
  EXPECT_NEAR(Tau(one, 0, 0), Tau(batch, 0, 0), 1e-6);
}

TEST(AmroS, OrderOfArrivalDoesNotChangeABit) {
  AgentUnderTest there("amro_s:ability=measured,importance=propensity", MakeGraph(2, {3, 4}), 64),
      back("amro_s:ability=measured,importance=propensity", MakeGraph(2, {3, 4}), 64);
  auto learn = [](AgentUnderTest& a, uint64_t i) {
    auto draw = [&](uint64_t unit) { return RandomUniform({6, i, 0, unit, 0}); };
    const double w = draw(0);
    a.Learn({w, 1 - w}, {static_cast<int>(draw(1) * 3), kSecond + static_cast<int>(draw(2) * 4)},
            draw(3), draw(4) < 0.5, draw(5), draw(6), draw(7), static_cast<int64_t>(i / 16));
  };
  for (uint64_t i = 0; i < 900; ++i) {
    learn(there, i);
    if (i % 7 == 0) there.state();  // looking does not change it either
  }
  for (uint64_t i = 900; i-- > 0;) learn(back, i);
  EXPECT_EQ(std::vector<double>(there.state().begin(), there.state().end()),
            std::vector<double>(back.state().begin(), back.state().end()));
}

TEST(AmroS, StaysFiniteAndPositive) {
  auto graph = MakeGraph(1, {3});
  for (Agent& a : graph->stages[0]) a.latency_s = 0;
  AgentUnderTest a("amro_s:rho=0.5,speed_weight=1,evaporate=row,alpha=3", graph);
  for (int i = 0; i < 1000; ++i) a.Learn({1}, {0}, 1, true, 0, 0, 1, i / 10);
  a.Learn({1}, {0}, 1, true, 0, 0, 1, 200);
  EXPECT_GT(Tau(a, 0, 1), 0);
  AgentTrace trace;
  std::vector<AgentLive> live(3);
  a.Route(3, {1}, &trace, {}, live);
  double sum = 0;
  for (const AgentCandidate& c : trace) {
    EXPECT_TRUE(std::isfinite(c.p) && std::isfinite(c.tau) && std::isfinite(c.eta));
    sum += c.p;
  }
  EXPECT_NEAR(sum, 1, 1e-6);
}

TEST(AmroS, PheromoneSurvivesAMillionEvaporations) {
  AgentUnderTest a("amro_s:rho=0.02,deposit=0", MakeGraph(1, {2}), 1);
  for (int i = 0; i < 1000; ++i) {
    for (int k = 0; k < 1000; ++k) a.Learn({1}, {0}, 1, true, 0, 0, 1, i);
  }
  EXPECT_GT(Tau(a, 0, 0), 0);
  EXPECT_EQ(a.Route(1, {1}).stages, 1);
}

TEST(AmroS, BoundsHoldPheromone) {
  AgentUnderTest a("amro_s:tau_min=0.5,tau_max=2,rho=0.3,evaporate=row", MakeGraph(1, {2}));
  for (int i = 0; i < 100; ++i) a.Learn({1}, {0}, 1, true);
  EXPECT_EQ(Tau(a, 0, 0), 2.0);
  EXPECT_EQ(Tau(a, 0, 1), 0.5);
  EXPECT_THAT(BuiltinRouters().agents.Create("amro_s:tau_min=3,tau_max=2").status().message(),
              testing::HasSubstr("tau_min=3 is above tau_max=2"));
}

TEST(AmroS, GreedyStepTakesTheBestAndSaysSo) {
  AgentUnderTest a("amro_s:q0=1,load_weight=0", MakeGraph(1, {4}));
  for (int i = 0; i < 5; ++i) a.Learn({1}, {2}, 1, true);
  for (uint64_t id = 0; id < 50; ++id) {
    const AgentDecision d = a.Route(id, {1});
    EXPECT_EQ(d.path[0], 2);
    EXPECT_EQ(d.propensity, 1);
  }
}

TEST(AmroS, ABusyAgentIsAskedLess) {
  AgentUnderTest a("amro_s:load_weight=1,beta=1", MakeGraph(1, {2}));
  std::vector<AgentLive> live(2);
  live[0].load = 9;
  AgentTrace trace;
  a.Route(1, {1}, &trace, {}, live);
  EXPECT_LT(trace[0].p, trace[1].p);
}

TEST(AmroS, NamesAWrongSetting) {
  EXPECT_THAT(BuiltinRouters().agents.Create("amro_s:evaporate=never").status().message(),
              testing::HasSubstr("'never' is not one of path, row, global"));
  EXPECT_THAT(BuiltinRouters().agents.Create("amro_s:base_cost=0,epsilon=0").status().message(),
              testing::HasSubstr("deposit infinity"));
}
}  // namespace
}  // namespace agent
SLUICE_END_NAMESPACE
