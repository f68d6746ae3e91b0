#include "sluice/routers/agent/round_robin/round_robin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
namespace round_robin_test {
TEST(RoundRobin, TakesTurnsAmongOpenAgents) {
  AgentUnderTest a("round_robin", MakeGraph(1, {3}));
  const std::vector<Block> blocked = {Block::kNone, Block::kCaller, Block::kNone};
  for (uint64_t id = 0; id < 6; ++id) {
    EXPECT_EQ(a.Route(id, {1}).path[0], static_cast<int32_t>(id % 3));
    const AgentDecision d = a.Route(id, {1}, nullptr, blocked);
    EXPECT_EQ(d.path[0], id % 2 == 0 ? 0 : 2);
    EXPECT_EQ(d.propensity, 0.5);
  }
}
// Stages of the same size do not go in step: over ids every path has its turn.
TEST(RoundRobin, EveryPathHasItsTurn) {
  AgentUnderTest a("round_robin", MakeGraph(1, {3, 3}));
  std::map<std::pair<int32_t, int32_t>, int> turns;
  for (uint64_t id = 0; id < 18; ++id) {
    const AgentDecision d = a.Route(id, {1});
    EXPECT_EQ(d.path[0], static_cast<int32_t>(id % 3));
    EXPECT_DOUBLE_EQ(d.propensity, 1.0 / 9);
    ++turns[{d.path[0], d.path[1]}];
  }
  EXPECT_EQ(turns.size(), 9u);
  for (const auto& [path, n] : turns) EXPECT_EQ(n, 2);
}
}  // namespace round_robin_test
}  // namespace agent
SLUICE_END_NAMESPACE
