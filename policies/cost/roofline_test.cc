#include "sluice/policies/cost/roofline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/tests/support/attention_data.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace roofline_test {
TEST(WorkOf, FollowsWhatTheExecutorCounts) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 1024, 1024, 4, 2, 16, 16, 5);
  for (const char* spec :
       {"dense", "sink_window:sink=64,window=128", "mean_pool:k=3", "mean_pool:k=6", "dsa:k=64"}) {
    PlanWork w;
    HarnessOptions o;
    o.see = [&](const AttentionPlan& plan) { w = WorkOf(plan, {16, 16, 4, 8}); };
    const AttentionCounters c = RunRouter(spec, a, o).counters;
    EXPECT_NEAR(w.macs / static_cast<double>(c.macs), 1, 0.3) << spec;
    EXPECT_GT(w.panel_bytes, 0) << spec;
    EXPECT_LE(w.bytes, 1024 * 2 * 32 * 4) << spec;  // no more than there is
  }
}

TEST(FitMachine, FindsTheRatesThatMadeTheTimes) {
  const MachineRates truth{2e-11, 3e-10, 4e-7, 5e-6, 1e-10};
  std::vector<MeasuredPlan> plans;
  for (uint64_t i = 0; i < 20; ++i) {
    auto draw = [&](uint64_t k) { return RandomUniform({1, i, k, 0, 0}); };
    PlanWork w{1e8 * draw(0), 1e7 * draw(1), 1e3 * draw(2), 1e4};
    plans.push_back({w, truth.Seconds(w) * (1 + 0.02 * (draw(3) - 0.5))});
  }
  const MachineRates r = *FitMachine(plans, 1e10);
  for (uint64_t i = 0; i < 20; ++i) {
    auto draw = [&](uint64_t k) { return RandomUniform({2, i, k, 0, 0}); };
    const PlanWork w{1e8 * draw(0), 1e7 * draw(1), 1e3 * draw(2), 1e4};
    EXPECT_NEAR(r.Seconds(w) / truth.Seconds(w), 1, 0.05);
  }
  const PlanWork memory{0, 0, 0, 1e9};  // a plan that only reads: the roof is the bandwidth
  EXPECT_NEAR(r.Seconds(memory), 0.1, 0.01);
}

TEST(FitMachine, BadMeasurementsAreNamed) {
  EXPECT_THAT(FitMachine({{{}, 1}}).status().message(), testing::HasSubstr("1 measured plans"));
  EXPECT_THAT(FitMachine({{{}, 1}, {{}, 1}, {{}, 0}, {{}, 1}}).status().message(),
              testing::HasSubstr("took 0 s"));
}
}  // namespace roofline_test
SLUICE_END_NAMESPACE
