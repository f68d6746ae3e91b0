#include "sluice/routers/agent/mas_cascade/mas_cascade.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
namespace mas_cascade_test {
TEST(MasCascade, StepIsTheGradientOfExpectedReward) {
  AgentUnderTest a("mas_cascade:rate=0.5,temperature=2", MakeGraph(1, {2}));
  a.Learn({1}, {0}, 0.8, true, 0, 0, 1, 1);
  a.Learn({1}, {1}, 0.2, true, 0, 0, 1, 1);
  // p = (.5, .5); rewards .8 and .2: theta_0 += .25 (.8 - .5 * 1), theta_1 += .25 (.2 - .5).
  EXPECT_NEAR(a.state()[0], 1 + 0.25 * 0.3, 1e-6);
  EXPECT_NEAR(a.state()[1], 1 - 0.25 * 0.3, 1e-6);
}

TEST(MasCascade, LearnsTheSecondStageGivenTheFirst) {
  AgentUnderTest a("mas_cascade:rate=0.3,baseline=true", MakeGraph(1, {2, 2}));
  for (int i = 0; i < 1600; ++i) {
    const AgentDecision d = a.Route(static_cast<uint64_t>(i), {1});
    a.Learn({1}, {d.path[0], d.path[1]}, (d.path[0] == 0) == (d.path[1] == 2), true, 0, 0,
            d.propensity, i / 16);
  }
  for (uint64_t id = 1000; id < 1050; ++id) {
    AgentTrace trace;
    const AgentDecision d = a.Route(id, {1}, &trace);
    EXPECT_GT(trace[d.path[0] == 0 ? 2 : 3].p, 0.8);
  }
}
}  // namespace mas_cascade_test
}  // namespace agent
SLUICE_END_NAMESPACE
