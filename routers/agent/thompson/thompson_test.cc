#include "sluice/routers/agent/thompson/thompson.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
namespace thompson_test {
// Plain Monte Carlo over the same posteriors.
double DrawBeta(double a, double b,
                uint64_t item) {  // by rejection from the uniform, weights relative to the mode
  const double mode = (a - 1) / (a + b - 2);
  auto log_density = [&](double x) { return (a - 1) * std::log(x) + (b - 1) * std::log1p(-x); };
  for (uint64_t i = 0;; ++i) {
    const double x = RandomUniform({1, item, i, 0, 0});
    if (RandomUniform({2, item, i, 0, 0}) < std::exp(log_density(x) - log_density(mode))) return x;
  }
}

TEST(Thompson, ProbabilitiesAreThoseOfSampling) {
  AgentUnderTest a("thompson:prior=4,cost_weight=20", MakeGraph(1, {3}));
  const double quality[3] = {0.7, 0.75, 0.9}, cost[3] = {0.001, 0.002, 0.009};
  for (int i = 0; i < 12; ++i) {
    for (int j = 0; j < 3; ++j) a.Learn({1}, {j}, quality[j], true, cost[j]);
  }
  AgentTrace trace;
  a.Route(1, {1}, &trace);
  std::vector<int> wins(3);
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    int best = 0;
    double top = -1e9;
    for (int j = 0; j < 3; ++j) {
      const double n = 16, good = 4 * 0.5 + 12 * quality[j];
      const double mean_cost = (4 * 0.001 * (j + 1) + 12 * cost[j]) / n;
      const double u = DrawBeta(good, n - good, static_cast<uint64_t>(i * 3 + j)) - 20 * mean_cost;
      if (u > top) {
        top = u;
        best = j;
      }
    }
    ++wins[best];
  }
  for (int j = 0; j < 3; ++j)
    EXPECT_NEAR(trace[j].p, wins[j] / static_cast<double>(kDraws), 0.012) << j;
}

TEST(Thompson, EvidenceSharpensIt) {
  AgentUnderTest a("thompson", MakeGraph(1, {2}));
  for (int i = 0; i < 2000; ++i) {
    a.Learn({1}, {0}, i % 10 < 7, true, 0, 0, 1, i / 16);
    a.Learn({1}, {1}, i % 10 < 6, true, 0, 0, 1, i / 16);
  }
  AgentTrace trace;
  a.Route(1, {1}, &trace);
  EXPECT_GT(trace[0].p, 0.999);
}
}  // namespace thompson_test
}  // namespace agent
SLUICE_END_NAMESPACE
