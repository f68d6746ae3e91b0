#include "sluice/routers/agent/cost_threshold/cost_threshold.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
namespace cost_threshold_test {
TEST(CostThreshold, AsksTheStrongAgentWhereTheCheapOneFails) {
  AgentUnderTest a("cost_threshold:threshold=0.3,prior=0.001", MakeGraph(2, {3}));
  for (int i = 0; i < 20; ++i) {
    a.Learn({1, 0}, {0}, 0.9, true);
    a.Learn({1, 0}, {2}, 1, true);  // easy: .1 to win
    a.Learn({0, 1}, {0}, 0.1, false);
    a.Learn({0, 1}, {2}, 0.9, true);  // hard: .81 to win
  }
  EXPECT_EQ(a.Route(1, {1, 0}).path[0], 0);
  EXPECT_EQ(a.Route(1, {0, 1}).path[0], 2);
  const std::vector<Block> blocked = {Block::kNone, Block::kNone, Block::kUnhealthy};
  EXPECT_NE(a.Route(1, {0, 1}, nullptr, blocked).path[0], 2);
}
}  // namespace cost_threshold_test
}  // namespace agent
SLUICE_END_NAMESPACE
