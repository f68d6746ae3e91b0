#include "sluice/routers/agent/epsilon_greedy/epsilon_greedy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
namespace epsilon_greedy_test {
TEST(EpsilonGreedy, PropensityIsTheShareOfBothRules) {
  AgentUnderTest a("epsilon_greedy:epsilon=0.2", MakeGraph(1, {4}));
  for (int i = 0; i < 10; ++i) a.Learn({1}, {3}, 1, true);
  AgentTrace trace;
  a.Route(1, {1}, &trace);
  EXPECT_NEAR(trace[3].p, 0.8 + 0.05, 1e-6);
  EXPECT_NEAR(trace[0].p, 0.05, 1e-6);
}

TEST(EpsilonGreedy, WeighsCost) {
  AgentUnderTest a("epsilon_greedy:epsilon=0,cost_weight=100", MakeGraph(1, {2}));
  for (int i = 0; i < 50; ++i) {
    a.Learn({1}, {0}, 0.8, true, 0.001);
    a.Learn({1}, {1}, 0.9, true, 0.01);
  }
  EXPECT_EQ(a.Route(1, {1}).path[0], 0);  // .8 - .1 against .9 - 1
}
}  // namespace epsilon_greedy_test
}  // namespace agent
SLUICE_END_NAMESPACE
