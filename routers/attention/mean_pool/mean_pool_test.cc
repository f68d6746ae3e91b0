#include "sluice/routers/attention/mean_pool/mean_pool.h"

#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace {
TEST(MeanPool, NestedInKAndInP) {
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 512, 512, 4, 2, 32, 32, 1);
  for (auto [small, large] :
       {std::pair<const char*, const char*>{"mean_pool:block=16,k=4", "mean_pool:block=16,k=9"},
        {"mean_pool:block=16,k=0,p=0.3", "mean_pool:block=16,k=0,p=0.8"}}) {
    const RoutedRun x = RunRouter(small, a), y = RunRouter(large, a);
    for (size_t i = 0; i < x.lists.size(); ++i)
      EXPECT_TRUE(std::includes(y.lists[i].begin(), y.lists[i].end(), x.lists[i].begin(),
                                x.lists[i].end()));
  }
}
TEST(MeanPool, ForcedBlocksAreThereAndTheSwitchCounts) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 1024, 64, 4, 2, 32, 32, 2);
  const RoutedRun in = RunRouter("mean_pool:block=64,k=4,sink=1,local=2", a),
                  out = RunRouter(
                      "mean_pool:block=64,k=4,sink=1,local=2,force_counts_in_budget=false",
                      a);
  EXPECT_EQ(in.lists.back().size(), 4u * 64);
  EXPECT_EQ(out.lists.back().size(), 7u * 64);
  EXPECT_EQ(in.lists.back().front(), 0u);
  EXPECT_EQ(in.lists.back().back(), 1023u);
}
TEST(MeanPool, BeatsTheWindowAndStaysBelowTheOracle) {
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 1024, 256, 4, 2, 32, 32, 3);
  HarnessOptions o;
  o.quality = true;
  const double pooled = RunRouter("mean_pool:block=64,k=6", a, o).quality.mass_recall.mean();
  const double window =
      RunRouter("sink_window:sink=64,window=320", a, o).quality.mass_recall.mean();
  const double oracle =
      RunRouter("oracle_block_topk:block=64,k=6", a, o).quality.mass_recall.mean();
  EXPECT_GT(pooled, window);
  EXPECT_GE(oracle + 1e-9, pooled);
}
TEST(MeanPool, NeedsABudget) {
  EXPECT_FALSE(BuiltinRouters().attention.Create("mean_pool:k=0").ok());
}
}  // namespace
SLUICE_END_NAMESPACE
