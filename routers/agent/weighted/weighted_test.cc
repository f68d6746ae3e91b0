#include "sluice/routers/agent/weighted/weighted.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
namespace weighted_test {
TEST(Weighted, DrawsByWeight) {
  auto graph = MakeGraph(1, {3});
  for (int j = 0; j < 3; ++j) graph->stages[0][j].weight = j;
  AgentUnderTest a("weighted", graph);
  std::vector<int> seen(3);
  for (uint64_t id = 0; id < 3000; ++id) ++seen[a.Route(id, {1}).path[0]];
  EXPECT_EQ(seen[0], 0);
  EXPECT_NEAR(seen[1], 1000, 100);
}

TEST(Weighted, FallsBackToUniformWhenOnlyWeightlessAgentsAreOpen) {
  auto graph = MakeGraph(1, {2});
  graph->stages[0][0].weight = 0;
  const std::vector<Block> blocked = {Block::kNone, Block::kUnhealthy};
  EXPECT_EQ(AgentUnderTest("weighted", graph).Route(1, {1}, nullptr, blocked).path[0], 0);
}
}  // namespace weighted_test
}  // namespace agent
SLUICE_END_NAMESPACE
