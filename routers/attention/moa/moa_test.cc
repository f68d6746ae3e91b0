#include "sluice/routers/attention/moa/moa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/moa/moa_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace moa_test {
AttentionData Data(int64_t keys, int64_t queries) {
  return MakeAttentionData(DataKind::kGaussian, keys, queries, 4, 2, 32, 24, 1);
}
RoutedRun Routed(const std::string& policy, const AttentionData& a, const HarnessOptions& o = {}) {
  RoutedRun r = RunRouter(policy, a, o);
  EXPECT_TRUE(r.status.ok()) << policy << ": " << r.status;
  return r;
}

// A policy, and what it means for each of four query heads.
struct Case {
  const char* policy;
  std::vector<MoaReference> heads;
};
std::vector<Case> Cases() {
  const MoaReference eighth = {0, 0.125, 16, 1, 16, false};
  const MoaReference half = {0, 0.5, 16, 1, 16, false};
  const MoaReference behind = {-40, 0.5, 16, 2, 1, false};
  const MoaReference ahead = {70, 0.1, 16, 2, 1, false};
  const MoaReference token = {-40, 0.5, 16, 1, 8, true};
  const MoaReference fixed = {37.5, 0, 16, 1, 8, true};
  const MoaReference plain = {0, 0.25, 64, 1, 64, false};
  return {{"moa:block=16,least=16,spans=0/0.125;0/0.5", {eighth, eighth, half, half}},
          {"moa:block=16,sink=2,least=1,spans=-40/0.5;70/0.1", {behind, behind, ahead, ahead}},
          {"moa:block=16,least=8,granularity=token,heads=query,spans=-40/0.5;37.5/0;-40/.5;37.5/0",
           {token, fixed, token, fixed}},
          {"moa:spans=0/0.25", {plain, plain, plain, plain}}};
}
TEST(Moa, ListsAreThoseOfTheReference) {
  for (const Case& c : Cases()) {
    for (int64_t keys : {17, 300, 333}) {
      for (int64_t queries : {keys, keys / 3, int64_t{1}}) {
        const AttentionData a = Data(keys, queries);
        const RoutedRun r = Routed(c.policy, a);
        int64_t pairs = 0;
        for (int64_t i = 0; i < queries; ++i) {
          for (int64_t h = 0; h < 4; ++h) {
            const std::vector<uint32_t> want = c.heads[h].List(keys - queries + i, keys);
            ASSERT_EQ(r.lists[i * 4 + h], want) << c.policy << " keys " << keys << " query " << i;
            pairs += std::ssize(want);
          }
        }
        EXPECT_EQ(r.counters.exact_pairs, pairs);  // the density that the spans promise
      }
    }
  }
}
TEST(Moa, ASpanOfEverythingIsDenseToTheBit) {
  const AttentionData a = Data(300, 300);
  const RoutedRun dense = Routed("dense", a);
  for (const char* spans :
       {"moa:spans=0/1", "moa:spans=300/0", "moa:granularity=token,spans=0/1"}) {
    EXPECT_EQ(Routed(spans, a).o, dense.o) << spans;
  }
}
TEST(Moa, HeadsDifferAsGivenAndLongerSpansLoseNothing) {
  const AttentionData a = Data(512, 512);
  std::vector<std::vector<uint32_t>> before(512 * 4);
  for (const char* beta : {"0", "0.125", "0.3", "0.8", "1"}) {
    const RoutedRun r =
        Routed(absl::StrCat("moa:block=16,least=16,spans=0/", beta, ";48/", beta), a);
    int64_t first = 0, second = 0;
    for (int64_t i = 0; i < 512 * 4; ++i) {
      EXPECT_TRUE(std::ranges::includes(r.lists[i], before[i]));
      (i % 4 < 2 ? first : second) += std::ssize(r.lists[i]);
    }
    EXPECT_LE(first, second);
    if (*beta == '0') {
      EXPECT_LT(first, second);
    }
    before = r.lists;
  }
}
// A step sees what the last row of a prompt of its length sees; what a head's span has left never
// returns, and a ring of sink and span holds what it sees.
TEST(Moa, AStepIsTheLastRowOfAPromptAndARingHoldsIt) {
  const AttentionData a = Data(400, 400);
  HarnessOptions steps;
  steps.first_chunk = 200;
  steps.chunk = 1;
  steps.adjust = [](SessionOptions&, AttentionInputs& in) { in.prompt_end = 200; };
  for (const char* policy : {"moa:block=16,least=16,spans=0/0.125;-32/0.6",
                             "moa:block=16,least=16,granularity=token,spans=0/0.125;-32/0.6"}) {
    const RoutedRun r = Routed(policy, a, steps);
    std::vector<uint32_t> oldest(4, 0);
    for (int64_t t = 200; t < 400; ++t) {
      const RoutedRun prompt = Routed(policy, Data(t + 1, 1));
      for (int64_t h = 0; h < 4; ++h) {
        const std::vector<uint32_t>& list = r.lists[t * 4 + h];
        ASSERT_EQ(list, prompt.lists[h]) << policy << " step " << t;
        const auto recent = std::ranges::lower_bound(list, 16u);  // behind the sink
        ASSERT_NE(recent, list.end());
        EXPECT_GE(*recent, oldest[h]) << policy << " step " << t;
        oldest[h] = *recent;
        const double share = h < 2 ? 0.125 : 0.6;
        const double span = (h < 2 ? 0 : -32) + share * static_cast<double>(t + 1);
        EXPECT_LE(std::distance(recent, list.end()), span + 32);  // and ragged blocks
      }
    }
  }
}
TEST(Moa, ChunksAreOfThePromptOrOfTheKeysSoFar) {
  const AttentionData a = Data(320, 320);
  HarnessOptions chunks;
  chunks.chunk = 64;
  const std::string spans = "moa:block=16,least=16,spans=0/0.5";
  EXPECT_EQ(Routed(spans, a, chunks).lists, Routed(spans, a).lists);
  const RoutedRun growing = Routed(spans + ",length=keys", a, chunks);
  EXPECT_EQ(Routed(spans + ",length=keys", a).lists, Routed(spans, a).lists);
  const MoaReference half = {0, 0.5, 16, 1, 16, false};
  for (int64_t t = 0; t < 320; ++t) EXPECT_EQ(growing.lists[t * 4], half.List(t, t / 64 * 64 + 64));
}
TEST(Moa, SkippedKeysAreNeitherReadNorComputed) {
  const AttentionData prompt = Data(2048, 2048);
  const AttentionData step = Data(2048, 1);
  const AttentionCounters dense = Routed("dense", step).counters;
  const AttentionCounters eighth = Routed("moa:spans=0/0.125", step).counters;
  EXPECT_LE(eighth.kv_bytes * 6, dense.kv_bytes);
  EXPECT_LE(eighth.macs * 6, dense.macs);
  const AttentionCounters half = Routed("moa:spans=0/0.125;0/0.5", prompt).counters;
  const AttentionCounters all = Routed("dense", prompt).counters;
  EXPECT_LT(static_cast<double>(half.computed_pairs),
            0.6 * static_cast<double>(all.computed_pairs));
}
TEST(Moa, LayersDifferByCompositionAndStepsMayBeReused) {
  const AttentionData a = Data(256, 256);
  HarnessOptions second;
  second.layer = 1;
  const std::string layers = "per_layer(moa:spans=0/0.25;0/1 | moa:spans=0/0.75;0/0.5)";
  EXPECT_EQ(Routed(layers, a).lists, Routed("moa:spans=0/0.25;0/1", a).lists);
  EXPECT_EQ(Routed(layers, a, second).lists, Routed("moa:spans=0/0.75;0/0.5", a).lists);
  // A pattern lists nothing, so that a reused one follows the keys.
  HarnessOptions steps;
  steps.first_chunk = 128;
  steps.chunk = 1;
  const std::string fixed = "moa:block=16,least=16,spans=40/0";
  EXPECT_EQ(Routed(absl::StrCat("refresh(8 | ", fixed, ")"), a, steps).lists,
            Routed(fixed, a, steps).lists);
}
TEST(Moa, RefusesSpansThatSayNothing) {
  const FactoryMap<AttentionRouter>& methods = BuiltinRouters().attention;
  for (const char* text : {"moa:spans=", "moa:spans=0", "moa:spans=0/1;", "moa:spans=0/1.5",
                           "moa:spans=0/-1", "moa:spans=x/1", "moa:spans=nan/1", "moa:spans=0/nan",
                           "moa:spans=1e300/0", "moa:spans=0/1/2"}) {
    EXPECT_FALSE(methods.Create(text).ok()) << text;
  }
  const absl::Status three = RunRouter("moa:spans=0/1;0/1;0/1", Data(64, 64)).status;
  EXPECT_THAT(std::string(three.message()), testing::HasSubstr("3 spans, but the model has 2 KV"));
}
}  // namespace moa_test
SLUICE_END_NAMESPACE
