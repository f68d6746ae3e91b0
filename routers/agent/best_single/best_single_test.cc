#include "sluice/routers/agent/best_single/best_single.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
namespace best_single_test {
TEST(BestSingle, IgnoresTheQuery) {
  AgentUnderTest a("best_single:prior=0.001", MakeGraph(2, {2}));
  for (int i = 0; i < 10; ++i) {
    a.Learn({1, 0}, {0}, 1, true);
    a.Learn({1, 0}, {1}, 0.9, true);
    a.Learn({0, 1}, {0}, 0, false);
    a.Learn({0, 1}, {1}, 0.5, true);
  }
  EXPECT_EQ(a.Route(1, {1, 0}).path[0], 1);
  EXPECT_EQ(a.Route(1, {0, 1}).path[0], 1);
}
}  // namespace best_single_test
}  // namespace agent
SLUICE_END_NAMESPACE
