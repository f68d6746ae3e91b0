#include "sluice/routers/agent/random/random.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
namespace random_test {
TEST(Random, DrawsEveryOpenAgentAlike) {
  AgentUnderTest a("random", MakeGraph(1, {4}));
  const std::vector<Block> blocked = {Block::kNone, Block::kUnhealthy, Block::kNone, Block::kNone};
  std::vector<int> seen(4);
  for (uint64_t id = 0; id < 3000; ++id) ++seen[a.Route(id, {1}, nullptr, blocked).path[0]];
  EXPECT_EQ(seen[1], 0);
  for (int j : {0, 2, 3}) EXPECT_NEAR(seen[j], 1000, 100);
  EXPECT_NEAR(a.Route(7, {1}, nullptr, blocked).propensity, 1.0 / 3, 1e-12);
}
}  // namespace random_test
}  // namespace agent
SLUICE_END_NAMESPACE
