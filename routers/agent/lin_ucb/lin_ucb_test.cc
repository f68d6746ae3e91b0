#include "sluice/routers/agent/lin_ucb/lin_ucb.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
namespace lin_ucb_test {
TEST(LinUcb, IsRidgeRegressionPlusDeviation) {
  AgentUnderTest a("lin_ucb:explore=0.5,ridge=2,width=1,cost_weight=0", MakeGraph(1, {1}));
  // x = (1, f): A = 2 I + sum x x', b = (2 * .5, 0) + sum y x.
  double A[2][2] = {{2, 0}, {0, 2}}, b[2] = {1, 0};
  for (int i = 0; i < 7; ++i) {
    const float f = 0.25f * static_cast<float>(i) - 1;
    a.features = {f};
    a.Learn({1}, {0}, 0.1 * i, true);
    A[0][0] += 1;
    A[0][1] += f;
    A[1][0] += f;
    A[1][1] += f * f;
    b[0] += 0.1 * i;
    b[1] += 0.1 * i * f;
  }
  const double det = A[0][0] * A[1][1] - A[0][1] * A[1][0], x[2] = {1, 0.5};
  const double theta[2] = {(A[1][1] * b[0] - A[0][1] * b[1]) / det,
                           (A[0][0] * b[1] - A[1][0] * b[0]) / det};
  const double variance =
      (A[1][1] * x[0] * x[0] - 2 * A[0][1] * x[0] * x[1] + A[0][0] * x[1] * x[1]) / det;
  a.features = {0.5f};
  AgentTrace trace;
  a.Route(1, {1}, &trace);
  EXPECT_NEAR(trace[0].eta, theta[0] + theta[1] * 0.5 + 0.5 * std::sqrt(variance), 1e-5);
}

TEST(LinUcb, SaysWhatFeaturesItWants) {
  AgentUnderTest a("lin_ucb:width=3", MakeGraph(1, {2}));
  AgentRequest q;
  const std::vector<double> intent = {1};
  q.intent = intent;
  AgentDecision d;
  EXPECT_THAT(a.router().Run(a.plan(), a.state(), q, d, nullptr).message(),
              testing::HasSubstr("0 features, wanted 3"));
}
}  // namespace lin_ucb_test
}  // namespace agent
SLUICE_END_NAMESPACE
