#include "sluice/routers/agent/amro_s/amro_s.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/agent/amro_s/amro_s_reference.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
namespace amro_s_test {
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

// Utilities that differ by agent and task, so that rows settle and some of them start anew.
struct RelativeDraw {
  std::vector<double> intent;
  int x, y;
  double quality, cost;
  double Utility() const { return quality - 2 * cost / 2; }  // each stage is told half of the cost
};
RelativeDraw DrawOf(uint64_t i) {
  auto draw = [&](uint64_t unit) { return RandomUniform({8, i, 0, unit, 0}); };
  const double w0 = draw(0) < 0.5 ? 1 : draw(1);
  RelativeDraw d = {{w0, 1 - w0}, static_cast<int>(draw(2) * 3), static_cast<int>(draw(3) * 4)};
  const double good = 0.2 + 0.2 * d.x + 0.1 * d.y - (i >= 700 && d.x == 2 ? 0.55 : 0);
  d.quality = draw(4) < good ? 1 : 0;
  d.cost = 0.1 * draw(5);
  return d;
}

TEST(AmroSRelative, EpochsOfOneOutcomeAreTheReference) {
  auto graph = MakeGraph(2, {3, 4});
  for (auto& stage : graph->stages) {
    for (Agent& agent : stage) agent.cost_usd = 0;
  }
  for (int j = 0; j < 3; ++j) graph->stages[0][j].ability = {0.3 + 0.2 * j, 0.9 - 0.3 * j};
  AgentUnderTest a("amro_s:pheromone=relative,cost_weight=2,memory=300,share=7,sharpen=0.2,prior=3",
                   graph);
  RelativeReference ref(2, {3, 4});
  ref.memory = 300;
  ref.share = 7;
  ref.sharpen = 0.2;
  ref.prior = 3;
  // Abilities over their stage's mean; the second stage's agents are said to be alike.
  ref.configured = {{{-0.2, 0, 0.2}}, {{0.3, 0, -0.3}}};
  double most = 0;
  bool started_anew = false;
  for (uint64_t i = 0; i < 1000; ++i) {
    const RelativeDraw d = DrawOf(i);
    const double seen = ref.edges[0][0][0][0].n;
    a.Learn(d.intent, {d.x, kSecond + d.y}, d.quality, false, d.cost);
    ref.Update(d.intent, {d.x, d.y}, d.Utility());
    started_anew = started_anew || ref.edges[0][0][0][0].n < 0.5 * seen;
    if (i % 50 != 0 && i < 990) continue;
    for (int t = 0; t < 2; ++t) {
      for (int row = 0; row < 4; ++row) {
        const std::vector<double> tau = row == 0 ? ref.Tau(t, 0, 0) : ref.Tau(t, 1, row - 1);
        for (size_t j = 0; j < tau.size(); ++j) {
          const int64_t edge = row == 0 ? j : 3 + 4 * (row - 1) + j;
          EXPECT_NEAR(Tau(a, t, edge), tau[j], 1e-5) << i << " task " << t << " edge " << edge;
          most = std::max(most, 1 - tau[j]);
        }
      }
    }
  }
  EXPECT_GT(most, 0.99) << "no edge was ever given up";
  EXPECT_TRUE(started_anew);
}

TEST(AmroSRelative, SuccessAndFailureBothMoveAnEdge) {
  AgentUnderTest a("amro_s:pheromone=relative,load_weight=0", MakeGraph(1, {2}));
  for (int i = 0; i < 30; ++i) a.Learn({1}, {0}, 1, true);
  for (int i = 0; i < 30; ++i) a.Learn({1}, {1}, 0, false);
  EXPECT_EQ(Tau(a, 0, 0), 1);
  const double failed = Tau(a, 0, 1);
  EXPECT_LT(failed, 1e-6);
  for (int i = 0; i < 30; ++i) a.Learn({1}, {1}, 1, true);
  EXPECT_GT(Tau(a, 0, 1), 10 * failed);
}

// No certainty before anything was seen, whatever the configuration says; it leans, no more.
TEST(AmroSRelative, TheFirstDecisionIsOpen) {
  auto graph = MakeGraph(1, {3});
  const double abilities[] = {0.1, 0.5, 0.95};
  for (int j = 0; j < 3; ++j) graph->stages[0][j].ability = {abilities[j]};
  AgentUnderTest same("amro_s:pheromone=relative", MakeGraph(1, {3})),
      told("amro_s:pheromone=relative", graph);
  AgentTrace even, leaning;
  same.Route(1, {1}, &even);
  told.Route(1, {1}, &leaning);
  for (int j = 0; j < 3; ++j) {
    EXPECT_NEAR(even[j].p, 1.0 / 3, 1e-6);
    EXPECT_GT(leaning[j].p, 0.01);
  }
  EXPECT_LT(leaning[0].p, 0.5 * leaning[2].p);
}

TEST(AmroSRelative, WhatAnAgentDidInOtherTasksCountsUntilItsOwnDoes) {
  AgentUnderTest a("amro_s:pheromone=relative,load_weight=0", MakeGraph(2, {3}));
  for (int i = 0; i < 300; ++i) a.Learn({1, 0}, {i % 3}, i % 3 == 1 ? 0.2 : 0.8, true);
  EXPECT_LT(Tau(a, 1, 1), 0.1) << "no word from the other task";
  for (int i = 0; i < 300; ++i) a.Learn({0, 1}, {i % 3}, i % 3 == 1 ? 0.9 : 0.5, true);
  EXPECT_EQ(Tau(a, 1, 1), 1);
  EXPECT_LT(Tau(a, 1, 0), 0.1);
}

TEST(AmroSRelative, AnAgentThatFellIsForgottenInTheTasksOtherRows) {
  AgentUnderTest a("amro_s:pheromone=relative,load_weight=0", MakeGraph(1, {2, 3}));
  RelativeReference ref(1, {2, 3});
  const auto learn = [&](int first, int second, double quality) {
    a.Learn({1}, {first, 2 + second}, quality, true);
    ref.Update({1}, {first, second}, quality);
  };
  for (int i = 0; i < 300; ++i) learn(i % 2, i % 3, i % 3 == 1 ? 0.9 : 0.4 + 0.2 * (i % 5 == 0));
  const int64_t of_other_row = 2 + 3;
  EXPECT_LT(Tau(a, 0, of_other_row), 0.1) << "the second is the best there";
  for (int i = 0; i < 60; ++i) learn(0, 1, 0.1);
  const std::vector<double> tau = ref.Tau(0, 1, 1);
  for (int j = 0; j < 3; ++j) EXPECT_NEAR(Tau(a, 0, of_other_row + j), tau[j], 1e-5) << j;
  EXPECT_GT(Tau(a, 0, of_other_row), 0.9);
}

TEST(AmroSRelative, OrderOfArrivalDoesNotChangeABit) {
  const std::string spec = "amro_s:pheromone=relative,memory=200,alarm=0.5,cost_weight=1";
  AgentUnderTest there(spec, MakeGraph(2, {3, 4}), 64), back(spec, MakeGraph(2, {3, 4}), 64);
  auto learn = [](AgentUnderTest& a, uint64_t i) {
    const RelativeDraw d = DrawOf(i);
    a.Learn(d.intent, {d.x, kSecond + d.y}, d.quality, false, d.cost, 0, 1,
            static_cast<int64_t>(i / 16));
  };
  for (uint64_t i = 0; i < 1000; ++i) {
    learn(there, i);
    if (i % 7 == 0) there.state();  // looking does not change it either
  }
  for (uint64_t i = 1000; i-- > 0;) learn(back, i);
  EXPECT_EQ(std::vector<double>(there.state().begin(), there.state().end()),
            std::vector<double>(back.state().begin(), back.state().end()));
}

TEST(AmroSRelative, NamesSettingsThatDoNothing) {
  const auto error = [](const std::string& spec) {
    return std::string(BuiltinRouters().agents.Create(spec).status().message());
  };
  EXPECT_THAT(error("amro_s:pheromone=relative,rho=0.1"),
              testing::HasSubstr("rho=0.1 does nothing with pheromone=relative; leave it out"));
  EXPECT_THAT(error("amro_s:pheromone=relative,ability=measured"),
              testing::HasSubstr("ability=measured does nothing"));
  EXPECT_THAT(error("amro_s:share=3"),
              testing::HasSubstr("share=3 does nothing with pheromone=published"));
}

TEST(AmroS, NamesAWrongSetting) {
  EXPECT_THAT(BuiltinRouters().agents.Create("amro_s:evaporate=never").status().message(),
              testing::HasSubstr("'never' is not one of path, row, global"));
  EXPECT_THAT(BuiltinRouters().agents.Create("amro_s:base_cost=0,epsilon=0").status().message(),
              testing::HasSubstr("deposit infinity"));
}
}  // namespace amro_s_test
}  // namespace agent
SLUICE_END_NAMESPACE
