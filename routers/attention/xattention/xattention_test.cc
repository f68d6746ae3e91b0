#include "sluice/routers/attention/xattention/xattention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/xattention/xattention_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace xattention_test {
struct Rule {
  const char* text;
  attention::XAttentionReference reference;
};
const Rule kRules[] = {
    {"block=32,stride=8,threshold=0.6", {.block = 32, .stride = 8, .threshold = 0.6}},
    {"block=32,stride=16,threshold=0.5,sink=0",
     {.block = 32, .stride = 16, .threshold = 0.5, .sink = 0}},
    {"block=16,stride=4,threshold=0.4,sink=2,least_queries=1",
     {.block = 16, .stride = 4, .threshold = 0.4, .sink = 2, .least_queries = 1}},
    {"block=24,stride=3,threshold=0.5,pair=max,least_queries=2",
     {.block = 24, .stride = 3, .threshold = 0.5, .sum_pairs = false, .least_queries = 2}},
    {"threshold=0.7", {.threshold = 0.7}},
    {"block=64,stride=16,threshold=0", {.block = 64, .threshold = 0}},
    {"block=16,stride=8,threshold=1", {.block = 16, .stride = 8, .threshold = 1}},
};
std::string Policy(const Rule& rule) { return absl::StrCat("xattention:", rule.text); }

// Squares that hang over the last query and the last key, and tiles that begin inside a stride.
TEST(XAttention, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule), a, c.Options());
  }
}
// More key strides than are scored together.
TEST(XAttention, ListsOfALongPromptAreTheReferences) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 700, 75, 2, 1, 32, 24, 2);
  ExpectListsOf(kRules[0].reference, Policy(kRules[0]), a);
  ExpectListsOf(kRules[2].reference, Policy(kRules[2]), a);
}
// With a stride of one the estimate is attention itself, and the blocks hold the share of it.
TEST(XAttention, StrideOneHoldsTheShareOfTheTrueMass) {
  for (DataKind kind : {DataKind::kGaussian, DataKind::kNeedles, DataKind::kClustered}) {
    const AttentionData a = MakeAttentionData(kind, 512, 512, 4, 2, 32, 24, 3);
    HarnessOptions o;
    o.quality = true;
    for (double threshold : {0.5, 0.8, 0.95}) {
      const RoutedRun run =
          RunRouter(absl::StrCat("xattention:block=16,stride=1,threshold=", threshold), a, o);
      ASSERT_TRUE(run.status.ok()) << run.status;
      EXPECT_GE(run.quality.mass_recall.mean(), threshold);
      EXPECT_LT(run.counters.density(), 1);
    }
  }
}
// Each query's one great logit lies `distance` keys before it, and only one block has such keys.
AttentionData Slash(int64_t distance, int64_t block, int64_t size) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 512, 512, 1, 1, 32, 16, 4);
  std::fill(a.q.begin(), a.q.end(), 0.0f);
  std::fill(a.k.begin(), a.k.end(), 0.0f);
  for (int64_t i = 0; i < 512; ++i) a.q[i * 32 + (i + 32 - distance) % 32] = 800;
  for (int64_t s = block * size; s < (block + 1) * size; ++s) a.k[s * 32 + s % 32] = 1;
  return a;
}
// Antidiagonals meet every slash of odd distance, and with an even stride none of even distance.
TEST(XAttention, SlashesOfOddDistanceAreFound) {
  for (int64_t distance = 1; distance < 32; ++distance) {
    const RoutedRun run = RunRouter("xattention:block=64,stride=16,threshold=0.5",
                                    Slash(distance, /*block=*/4, /*size=*/64));
    ASSERT_TRUE(run.status.ok()) << run.status;
    const std::vector<uint32_t>& last = run.lists[511];  // of block 7
    EXPECT_EQ(std::binary_search(last.begin(), last.end(), 4 * 64), distance % 2 == 1) << distance;
    if (distance % 2 == 1) {
      EXPECT_EQ(std::ssize(last), 3 * 64) << "the first block, the found one and the own";
    }
  }
}
TEST(XAttention, ChunksOfBlocksGiveTheListsOfOneCall) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 448, 448, 4, 2, 32, 24, 5);
  for (auto [policy, chunk] :
       {std::pair<const char*, int64_t>{"xattention:threshold=0.6", 128},
        {"xattention:block=32,stride=8,threshold=0.5", 64},
        {"xattention:block=64,stride=16,threshold=0.5,least_queries=1", 192}}) {
    HarnessOptions o;
    o.chunk = chunk;
    EXPECT_EQ(RunRouter(policy, a, o).lists, RunRouter(policy, a).lists) << policy;
  }
}
// Keys after the tile, which ends inside a stride of keys, change nothing.
TEST(XAttention, WhatComesAfterTheTileHasNoSay) {
  const int64_t begin = 15;
  const int64_t tiles = 6 * 32;
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 300 - begin, 4, 2, 32, 24, 6);
  ExpectFirstListsAlike("xattention:block=32,stride=16,threshold=0.5", a,
                        WithOtherKeysAfter(a, tiles), tiles);
}
TEST(XAttention, DecodeIsDenseUnlessItIsScored) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 1, 4, 2, 32, 24, 7);
  EXPECT_EQ(RunRouter("xattention", a).lists, RunRouter("dense", a).lists);
  EXPECT_LT(RunRouter("xattention:block=16,threshold=0.3,least_queries=1", a).counters.density(),
            1);
}
TEST(XAttention, TiesGoToTheLowestBlock) {
  for (int64_t q : {300, 40}) {
    AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, q, 4, 2, 16, 24, 8);
    std::fill(a.q.begin(), a.q.end(), 0.0f);  // every pair has the same weight
    const RoutedRun run =
        RunRouter("xattention:block=16,stride=4,threshold=0.5,sink=0,least_queries=1", a);
    ASSERT_TRUE(run.status.ok()) << run.status;
    const std::vector<uint32_t>& last = run.lists.back();
    size_t n = 0;
    while (n < last.size() && last[n] == n) ++n;  // the first blocks without a gap, then the own
    EXPECT_GT(n, 100);
    EXPECT_LE(last.size() - n, 2 * 16);
  }
}
// A query of NaN silences its stride, a key of NaN the strides that reach it.
TEST(XAttention, NanScoresAreNotSelected) {
  const AttentionData clean = MakeAttentionData(DataKind::kGaussian, 300, 130, 4, 2, 32, 24, 9);
  for (const AttentionData& a : WithNans(clean, 37 * 4 * 32, 250 * 2 * 32)) {
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule), a);
  }
}
TEST(XAttention, NestedInTheThreshold) {
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 512, 512, 4, 2, 32, 32, 1);
  const RoutedRun x = RunRouter("xattention:block=32,threshold=0.4", a);
  const RoutedRun y = RunRouter("xattention:block=32,threshold=0.8", a);
  EXPECT_LT(x.counters.exact_pairs, y.counters.exact_pairs);
  for (size_t i = 0; i < x.lists.size(); ++i)
    EXPECT_TRUE(
        std::includes(y.lists[i].begin(), y.lists[i].end(), x.lists[i].begin(), x.lists[i].end()));
}
TEST(XAttention, RefusesWhatDoesNotFit) {
  const auto& routers = BuiltinRouters().attention;
  EXPECT_THAT(std::string(routers.Create("xattention:block=100").status().message()),
              testing::HasSubstr("block=100 is not a multiple of stride=16"));
  EXPECT_THAT(
      std::string(routers.Create("xattention:block=32,least_queries=33").status().message()),
      testing::HasSubstr("least_queries=33, at most block=32 is allowed"));
}
}  // namespace xattention_test
SLUICE_END_NAMESPACE
