#include "sluice/routers/attention/mean_pool/mean_pool.h"

#include <gtest/gtest.h>

#include "sluice/routers/attention/mean_pool/mean_pool_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace mean_pool_test {
struct Rule {
  const char* text;
  attention::MeanPoolReference reference;
};
const Rule kRules[] = {
    {"block=16,k=4", {.block = 16, .budget = {.k = 4}}},
    {"block=16,k=6,sink=2,local=1", {.block = 16, .budget = {.k = 6, .sink = 2, .local = 1}}},
    {"block=16,k=3,sink=0,local=3,force_counts_in_budget=false",
     {.block = 16, .budget = {.k = 3, .sink = 0, .local = 3, .count_forced = false}}},
    {"block=32,k=0,p=0.6", {.block = 32, .budget = {.p = 0.6}}},
    {"block=16,k=0,p=0.4,local=1,force_counts_in_budget=false",
     {.block = 16, .budget = {.p = 0.4, .local = 1, .count_forced = false}}},
    {"block=16,k=5,pool_queries=true", {.block = 16, .budget = {.k = 5}, .pool_queries = true}},
    {"block=128,k=2,local=1", {.block = 128, .budget = {.k = 2, .local = 1}}},
    {"block=16,k=2147483648", {.block = 16, .budget = {.k = int64_t{1} << 31}}},
    {"block=16,k=0,p=1", {.block = 16, .budget = {.p = 1}}},
};

TEST(MeanPool, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (const Rule& rule : kRules)
      ExpectListsOf(rule.reference, absl::StrCat("mean_pool:", rule.text), a, c.Options());
  }
}
// Blocks longer than a tile, and tiles that end inside a block: what comes after the tile has no
// say.
TEST(MeanPool, ChunksOfTilesGiveTheListsOfOneCall) {
  for (int64_t q : {448, 410}) {
    const AttentionData a = MakeAttentionData(DataKind::kNeedles, 448, q, 4, 2, 32, 24, 5);
    for (const char* rule :
         {"block=128,sink=0,local=1,k=0,p=0.6", "block=256,k=0,p=0.5,sink=0,local=1",
          "block=32,k=0,p=0.5,sink=0,local=1", "block=32,k=5"}) {
      HarnessOptions o;
      o.chunk = 64;
      const std::string policy = absl::StrCat("mean_pool:", rule);
      EXPECT_EQ(RunRouter(policy, a, o).lists, RunRouter(policy, a).lists) << policy << " " << q;
    }
  }
}
TEST(MeanPool, TiesGoToTheLowestBlock) {
  for (int64_t q : {200, 1}) {
    const AttentionData a =
        WithTies(MakeAttentionData(DataKind::kGaussian, 333, q, 4, 2, 16, 24, 2), 16);
    for (const char* k : {"3", "5", "8", "12"}) {
      attention::MeanPoolReference want = {.block = 16};
      ASSERT_TRUE(absl::SimpleAtoi(k, &want.budget.k));
      ExpectListsOf(want, absl::StrCat("mean_pool:block=16,k=", k), a);
    }
  }
}
// A query of NaN leaves the choice to the others; a key of NaN makes NaN of every probability of
// those that see it, and no block is chosen by such a score.
TEST(MeanPool, NanScoresAreNotSelected) {
  const AttentionData clean = MakeAttentionData(DataKind::kGaussian, 300, 130, 4, 2, 32, 24, 3);
  for (const AttentionData& a : WithNans(clean, 5 * 4 * 32, 250 * 2 * 32)) {
    for (const Rule& rule : kRules)
      ExpectListsOf(rule.reference, absl::StrCat("mean_pool:", rule.text), a);
  }
}
TEST(MeanPool, LogitsOfMinusInfinityAreProbabilityZero) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 130, 4, 2, 32, 24, 4);
  for (size_t i = 0; i < a.q.size(); i += 32) a.q[i] = std::fabs(a.q[i]) + 0.1f;
  for (int64_t s = 40; s < 120; ++s) a.k[s * 2 * 32] = -INFINITY;
  for (const Rule& rule : kRules)
    ExpectListsOf(rule.reference, absl::StrCat("mean_pool:", rule.text), a);
}
TEST(MeanPool, NestedInKAndInP) {
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 512, 512, 4, 2, 32, 32, 1);
  for (auto [small, large] :
       {std::pair<const char*, const char*>{"mean_pool:block=16,k=4", "mean_pool:block=16,k=9"},
        {"mean_pool:block=16,k=0,p=0.3", "mean_pool:block=16,k=0,p=0.8"}}) {
    const RoutedRun x = RunRouter(small, a);
    const RoutedRun y = RunRouter(large, a);
    EXPECT_LT(x.counters.exact_pairs, y.counters.exact_pairs);
    for (size_t i = 0; i < x.lists.size(); ++i)
      EXPECT_TRUE(std::includes(y.lists[i].begin(), y.lists[i].end(), x.lists[i].begin(),
                                x.lists[i].end()));
  }
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
  EXPECT_GT(oracle, pooled);
}
TEST(MeanPool, NeedsABudget) {
  EXPECT_FALSE(BuiltinRouters().attention.Create("mean_pool:k=0").ok());
}
}  // namespace mean_pool_test
SLUICE_END_NAMESPACE
