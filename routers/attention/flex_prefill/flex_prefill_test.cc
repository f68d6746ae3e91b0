#include "sluice/routers/attention/flex_prefill/flex_prefill.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/flex_prefill/flex_prefill_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace flex_prefill_test {
struct Rule {
  const char* text;
  attention::FlexPrefillReference reference;
};
const Rule kRules[] = {
    {"tau=0,gamma=0.5,min_budget=7,local=20,last=24,segment=128",
     {.tau = 0, .gamma = 0.5, .min_budget = 7, .local = 20, .last = 24, .segment = 128}},
    {"block=64,segment=64,last=64,tau=0,gamma=0.3,min_budget=40,sink=0,local=1",
     {.block = 64,
      .tau = 0,
      .gamma = 0.3,
      .min_budget = 40,
      .sink = 0,
      .local = 1,
      .last = 64,
      .segment = 64}},
    {"block=64,tau=1,gamma=0.4,min_budget=0,local=10,segment=128",
     {.block = 64, .tau = 1, .gamma = 0.4, .min_budget = 0, .local = 10, .segment = 128}},
    {"block=64,tau=1,gamma=0.3,min_budget=100,local=5,pairs=joint,least_queries=1",
     {.block = 64,
      .tau = 1,
      .gamma = 0.3,
      .min_budget = 100,
      .local = 5,
      .joint = true,
      .least_queries = 1}},
    {"block=64,segment=64,last=32,tau=0.2,gamma=0.6,min_budget=3,local=8,least_queries=2",
     {.block = 64,
      .tau = 0.2,
      .gamma = 0.6,
      .min_budget = 3,
      .local = 8,
      .last = 32,
      .segment = 64,
      .least_queries = 2}},
    {"min_budget=32", {.min_budget = 32}},
    {"tau=0,gamma=0,min_budget=0", {.tau = 0, .gamma = 0, .min_budget = 0}},
    {"gamma=1", {.gamma = 1}},
};
std::string Policy(const Rule& rule) { return absl::StrCat("flex_prefill:", rule.text); }

TEST(FlexPrefill, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule), a, c.Options());
  }
}
// Several segments, the last of them short, whose first query stands inside a block.
TEST(FlexPrefill, ListsOfALongPromptAreTheReferences) {
  for (DataKind kind : {DataKind::kNeedles, DataKind::kClustered, DataKind::kSinkRecent}) {
    const AttentionData a = MakeAttentionData(kind, 700, 405, 2, 1, 32, 24, 2);
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule), a);
  }
}

bool Sees(const RoutedRun& run, int64_t query, int64_t key) {
  const std::vector<uint32_t>& list = run.lists[query * 2];
  return std::binary_search(list.begin(), list.end(), static_cast<uint32_t>(key));
}
// Every query wants two keys, which their blocks' means hide.
TEST(FlexPrefill, ColumnsAreFound) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 512, 512, 2, 1, 64, 16, 4);
  std::fill(a.q.begin(), a.q.end(), 0.0f);
  std::fill(a.k.begin(), a.k.end(), 0.0f);
  for (int64_t i = 0; i < 512 * 2; ++i) a.q[i * 64] = 90;
  a.k[37 * 64] = a.k[170 * 64] = 1;
  const RoutedRun run =
      RunRouter("flex_prefill:tau=0,gamma=0.5,min_budget=0,local=8,segment=128,last=32", a);
  ASSERT_TRUE(run.status.ok()) << run.status;
  for (int64_t i = 171; i < 512; ++i) {
    EXPECT_TRUE(Sees(run, i, 37) && Sees(run, i, 170)) << i;
    if (i % 128 >= 64) {
      EXPECT_FALSE(Sees(run, i, 100)) << i << ": between the slashes of both keys";
    }
  }
}
// Every query wants the key that stands 100 before it: one slash, of 64 keys a tile.
TEST(FlexPrefill, SlashesAreFound) {
  const int64_t distance = 100;
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 512, 512, 2, 1, 64, 16, 4);
  for (int64_t i = distance; i < 512; ++i) {
    for (int64_t x = 0; x < 2 * 64; ++x)
      a.q[i * 2 * 64 + x] = 3 * a.k[(i - distance) * 64 + x % 64];
  }
  const RoutedRun run =
      RunRouter("flex_prefill:tau=0,gamma=0.5,min_budget=0,local=1,segment=128,last=32", a);
  ASSERT_TRUE(run.status.ok()) << run.status;
  for (int64_t i = 128; i < 512; ++i) EXPECT_TRUE(Sees(run, i, i - distance)) << i;
  EXPECT_LE(std::ssize(run.lists.back()), 64 + 64 + 16 + 4) << "slash, own tile, columns, sink";
}
// Where all keys of a block are one, means tell the truth and blocks are taken; one key that
// stands out is followed by lines.
TEST(FlexPrefill, AHeadChoosesByWhatItsMeansAreWorth) {
  AttentionData even = MakeAttentionData(DataKind::kGaussian, 512, 512, 2, 1, 64, 16, 5);
  for (int64_t s = 0; s < 512; ++s) std::copy_n(&even.k[s / 64 * 64 * 64], 64, &even.k[s * 64]);
  for (int64_t i = 1; i < 512 * 2; ++i) std::copy_n(even.q.data(), 64, &even.q[i * 64]);

  AttentionData odd = MakeAttentionData(DataKind::kGaussian, 512, 512, 2, 1, 64, 16, 6);
  for (int64_t i = 0; i < 512 * 2; ++i) odd.q[i * 64] = 60;
  for (int64_t s = 0; s < 512; ++s) odd.k[s * 64] = s == 20 ? 3 : 0;
  const std::string rest = "block=64,gamma=0.6,min_budget=0,local=8,segment=128,last=64";
  const auto lists = [&](const char* tau, const AttentionData& a) {
    return RunRouter(absl::StrCat("flex_prefill:tau=", tau, ",", rest), a).lists;
  };
  EXPECT_EQ(lists("0.3", even), lists("1", even));
  EXPECT_NE(lists("0.3", even), lists("0", even));
  EXPECT_EQ(lists("0.3", odd), lists("0", odd));
  EXPECT_NE(lists("0.3", odd), lists("1", odd));
}
// Where every query is looked at, the columns alone hold the share of the true mass.
TEST(FlexPrefill, LookingAtEveryQueryHoldsTheShareOfTheTrueMass) {
  HarnessOptions o;
  o.quality = true;
  for (DataKind kind : {DataKind::kGaussian, DataKind::kNeedles, DataKind::kClustered}) {
    const AttentionData a = MakeAttentionData(kind, 512, 512, 4, 2, 32, 24, 3);
    for (double gamma : {0.5, 0.8, 0.95}) {
      const RoutedRun run = RunRouter(
          absl::StrCat("flex_prefill:block=64,segment=64,last=64,tau=0,min_budget=0,gamma=", gamma),
          a, o);
      ASSERT_TRUE(run.status.ok()) << run.status;
      EXPECT_GE(run.quality.mass_recall.mean(), gamma);
      if (gamma == 0.5 && kind != DataKind::kGaussian) {
        EXPECT_LT(run.counters.density(), 1);
      }
    }
  }
}
TEST(FlexPrefill, FullBudgetIsDenseToTheBit) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 600, 500, 4, 2, 32, 24, 7);
  const RoutedRun dense = RunRouter("dense", a);
  for (const char* tau : {"0", "0.1", "1"}) {
    const RoutedRun full = RunRouter(absl::StrCat("flex_prefill:gamma=1,tau=", tau), a);
    EXPECT_EQ(full.lists, dense.lists);
    EXPECT_EQ(full.o, dense.o);
  }
}
TEST(FlexPrefill, ChunksOfSegmentsGiveTheListsOfOneCall) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 460, 460, 4, 2, 32, 24, 5);
  for (const char* tau : {"0", "0.3", "1"}) {
    const std::string policy =
        absl::StrCat("flex_prefill:block=64,segment=128,last=64,gamma=0.6,min_budget=9,tau=", tau);
    for (int64_t chunk : {128, 256}) {
      HarnessOptions o;
      o.chunk = chunk;
      EXPECT_EQ(RunRouter(policy, a, o).lists, RunRouter(policy, a).lists) << policy << chunk;
    }
  }
}
// Queries and keys after a segment, which ends inside a block of keys, change nothing.
TEST(FlexPrefill, WhatComesAfterTheSegmentHasNoSay) {
  const int64_t begin = 15;
  const int64_t kept = 2 * 128;
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 430, 430 - begin, 4, 2, 32, 24, 6);
  AttentionData after = WithOtherKeysAfter(a, kept);
  std::fill(after.q.begin() + kept * 4 * 32, after.q.end(), 3.0f);
  for (const char* tau : {"0", "1"}) {
    ExpectFirstListsAlike(absl::StrCat("flex_prefill:segment=128,gamma=0.5,min_budget=9,tau=", tau),
                          a, after, kept);
  }
}
TEST(FlexPrefill, DecodeIsDenseUnlessItIsScored) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 1, 4, 2, 32, 24, 7);
  EXPECT_EQ(RunRouter("flex_prefill", a).lists, RunRouter("dense", a).lists);
  EXPECT_LT(RunRouter("flex_prefill:gamma=0.3,min_budget=9,least_queries=1", a).counters.density(),
            1);
}
// Equal weights: the first keys, and of distances the longest ones.
TEST(FlexPrefill, TiesGoToTheFirstKeysAndTheLongestDistances) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 256, 64, 2, 1, 16, 24, 8);
  std::fill(a.q.begin(), a.q.end(), 0.0f);
  const RoutedRun run = RunRouter(
      "flex_prefill:block=64,segment=64,last=1,least_queries=1,tau=0,gamma=0.1,min_budget=0,"
      "sink=0,local=1",
      a);
  ASSERT_TRUE(run.status.ok()) << run.status;
  std::vector<uint32_t> want(26);  // 26 columns; and distances 230 to 255, from query 192 on
  std::iota(want.begin(), want.end(), 0);
  for (uint32_t s = 192; s < 256; ++s) want.push_back(s);
  EXPECT_EQ(run.lists.back(), want);
}
TEST(FlexPrefill, NanScoresAreNotSelected) {
  const AttentionData clean = MakeAttentionData(DataKind::kGaussian, 300, 130, 4, 2, 32, 24, 9);
  for (const AttentionData& a : WithNans(clean, 127 * 4 * 32, 250 * 2 * 32)) {
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule), a);
  }
}
TEST(FlexPrefill, NestedInGamma) {
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 512, 512, 4, 2, 32, 32, 1);
  for (const char* tau : {"0", "1"}) {
    const std::string policy =
        absl::StrCat("flex_prefill:block=64,local=8,min_budget=0,tau=", tau, ",gamma=");
    const RoutedRun x = RunRouter(policy + "0.4", a);
    const RoutedRun y = RunRouter(policy + "0.8", a);
    EXPECT_LT(x.counters.exact_pairs, y.counters.exact_pairs);
    for (size_t i = 0; i < x.lists.size(); ++i) {
      EXPECT_TRUE(std::includes(y.lists[i].begin(), y.lists[i].end(), x.lists[i].begin(),
                                x.lists[i].end()));
    }
  }
}
TEST(FlexPrefill, RefusesWhatDoesNotFit) {
  const auto& routers = BuiltinRouters().attention;
  const auto said = [&](const char* policy) {
    return std::string(routers.Create(policy).status().message());
  };
  EXPECT_THAT(said("flex_prefill:block=100"),
              testing::HasSubstr("block=100 must be a multiple of 64 and divide segment=512"));
  EXPECT_THAT(said("flex_prefill:block=128,segment=192"), testing::HasSubstr("divide segment=192"));
  EXPECT_THAT(said("flex_prefill:segment=128,last=129"),
              testing::HasSubstr("last=129 and least_queries=16, at most segment=128"));
}
}  // namespace flex_prefill_test
SLUICE_END_NAMESPACE
