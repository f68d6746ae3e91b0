#include "sluice/routers/attention/dhsa/dhsa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/dhsa/dhsa_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace dhsa_test {
struct Rule {
  const char* text;
  attention::DhsaReference reference;
};
const Rule kRules[] = {
    {"budget=60,block=32,global=5,local=20,dense_tail=0",
     {.budget = 60, .block = 32, .global = 5, .local = 20, .dense_tail = 0}},
    {"budget=90,block=16,global=0,local=40,dense_tail=30,share=kv,window=2,radius=3,novelty=0.3,"
     "longest=9",
     {.window = 2,
      .radius = 3,
      .novelty = 0.3,
      .longest = 9,
      .budget = 90,
      .block = 16,
      .global = 0,
      .local = 40,
      .dense_tail = 30,
      .all_heads = false}},
    {"window=1,radius=0,longest=5,budget=33,block=20,global=1,local=1,dense_tail=0,least_queries=1",
     {.window = 1,
      .radius = 0,
      .longest = 5,
      .budget = 33,
      .block = 20,
      .global = 1,
      .local = 1,
      .dense_tail = 0,
      .least_queries = 1}},
    {"boundaries=fixed,chunk=7,budget=70,block=64,global=10,local=10,dense_tail=0,share=kv",
     {.boundaries = 'f',
      .chunk = 7,
      .budget = 70,
      .block = 64,
      .global = 10,
      .local = 10,
      .dense_tail = 0,
      .all_heads = false}},
    {"boundaries=given,at=11/40/41/150,chunk=50,budget=100,block=32,global=4,local=9,dense_tail=0,"
     "least_queries=1",
     {.boundaries = 'g',
      .at = {11, 40, 41, 150},
      .chunk = 50,
      .budget = 100,
      .block = 32,
      .global = 4,
      .local = 9,
      .dense_tail = 0,
      .least_queries = 1}},
    {"budget=1,block=16,dense_tail=0", {.budget = 1, .block = 16, .dense_tail = 0}},
    {"budget=2147483648,dense_tail=0", {.budget = int64_t{1} << 31, .dense_tail = 0}},
};
std::string Policy(const Rule& rule) { return absl::StrCat("dhsa:", rule.text); }

TEST(Dhsa, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule), a, c.Options());
  }
}
// A prompt that is not at its end yet, in calls that grow the chunks bit by bit.
TEST(Dhsa, ListsOfAPromptInPartsAreTheReferences) {
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 420, 400, 4, 2, 32, 24, 3);
  HarnessOptions o;
  o.chunk = 57;
  o.first_chunk = 3;
  o.adjust = [](SessionOptions&, AttentionInputs& in) { in.prompt_end = in.kv_len() + 20; };
  for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule), a, o);
}

// Topics of other lengths than chunks have: a boundary stands where a topic begins, and the tokens
// of the topic that is looked for are all taken, where chunks of a fixed length cut it.
TEST(Dhsa, BoundariesStandWhereTheTextTurns) {
  const int64_t lengths[] = {30, 41, 27, 50, 33, 39};
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 300, 2, 1, 32, 16, 4);
  int64_t s = 0;
  std::vector<int64_t> begins;
  for (int64_t topic = 0; s < 300; ++topic) {
    begins.push_back(s);
    const int64_t end = std::min<int64_t>(300, s + lengths[topic % 6]);
    for (; s < end; ++s) {
      for (int64_t x = 0; x < 32; ++x) a.k[s * 32 + x] = x == topic ? 4 : 0.01f * a.k[s * 32 + x];
    }
  }
  for (int64_t i = 0; i < 300 * 2; ++i) {
    for (int64_t x = 0; x < 32; ++x) a.q[i * 32 + x] = x == 3 ? 1 : 0;
  }
  // Topic 3 is [98, 148).
  for (auto [rule, whole] : {std::pair("", true), std::pair("boundaries=fixed,chunk=64,", false)}) {
    const RoutedRun run = RunRouter(absl::StrCat("dhsa:", rule,
                                                 "novelty=0.5,budget=82,block=16,"
                                                 "global=16,local=16,dense_tail=0"),
                                    a);
    ASSERT_TRUE(run.status.ok()) << run.status;
    std::vector<uint32_t> middle;  // neither global nor local
    for (uint32_t key : run.lists[287 * 2]) {
      if (key >= 16 && key < 272) middle.push_back(key);
    }
    std::vector<uint32_t> topic(50);
    std::iota(topic.begin(), topic.end(), 98);
    EXPECT_EQ(middle == topic, whole) << rule;
    EXPECT_EQ(std::ssize(middle), 50) << rule;
  }
}
// Chunks of one key, and one head: the truly best keys.
TEST(Dhsa, ChunksOfOneKeyAreRankedAsKeys) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 150, 1, 1, 1, 32, 16, 5);
  const RoutedRun run = RunRouter(
      "dhsa:boundaries=fixed,chunk=1,budget=9,global=0,local=1,dense_tail=0,least_queries=1", a);
  ASSERT_TRUE(run.status.ok()) << run.status;
  attention::reference::Vector logits;
  for (int64_t s = 0; s < 149; ++s) {
    logits.push_back(attention::reference::Product(attention::reference::Query(a.Q(), 0, 0, 1),
                                                   attention::reference::Key(a.K(), s, 0)));
  }
  std::vector<int64_t> want = attention::reference::Best(logits, 8);
  want.push_back(149);
  EXPECT_EQ(run.lists[0], std::vector<uint32_t>(want.begin(), want.end()));
}
// Equal chunks: blocks by mean-pooled keys, as mean_pool takes them.
TEST(Dhsa, EqualChunksAreMeanPooledBlocks) {
  AttentionData a = MakeAttentionData(DataKind::kNeedles, 320, 320, 2, 1, 32, 16, 6);
  for (int64_t i = 0; i < 320; ++i)  // mean_pool takes the larger score of two heads, this the mean
    std::copy_n(&a.q[i * 2 * 32], 32, &a.q[(i * 2 + 1) * 32]);
  const RoutedRun chunks = RunRouter(
      "dhsa:boundaries=fixed,chunk=16,budget=128,block=64,global=16,local=64,dense_tail=0", a);
  const RoutedRun blocks = RunRouter("mean_pool:block=16,k=8,sink=1,local=1,pool_queries=true", a);
  ASSERT_TRUE(chunks.status.ok() && blocks.status.ok());
  EXPECT_EQ(chunks.lists, blocks.lists);
}
TEST(Dhsa, FullBudgetIsDenseToTheBit) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 600, 500, 4, 2, 32, 24, 7);
  const RoutedRun dense = RunRouter("dense", a);
  for (const char* rule : {"", ",boundaries=fixed", ",boundaries=given,at=9/77", ",share=kv"}) {
    const RoutedRun full =
        RunRouter(absl::StrCat("dhsa:budget=2147483648,dense_tail=0,global=3,local=9", rule), a);
    EXPECT_EQ(full.lists, dense.lists) << rule;
    EXPECT_EQ(full.o, dense.o) << rule;
  }
}
TEST(Dhsa, ChunksOfBlocksGiveTheListsOfOneCall) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 450, 450, 4, 2, 32, 24, 5);
  for (const char* rule : {"boundaries=cosine", "boundaries=fixed", "boundaries=given,at=50/51"}) {
    for (int64_t chunk : {32, 96}) {
      HarnessOptions o;
      o.chunk = chunk;
      const std::string policy =
          absl::StrCat("dhsa:budget=90,block=32,global=8,local=16,dense_tail=40,", rule);
      EXPECT_EQ(RunRouter(policy, a, o).lists, RunRouter(policy, a).lists) << policy << chunk;
    }
  }
}
TEST(Dhsa, WhatComesAfterTheBlockHasNoSay) {
  const int64_t begin = 15;
  const int64_t blocks = 6 * 32;
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 300 - begin, 4, 2, 32, 24, 6);
  ExpectFirstListsAlike("dhsa:budget=60,block=32,global=8,local=16,dense_tail=0", a,
                        WithOtherKeysAfter(a, blocks), blocks);
}
TEST(Dhsa, DecodeIsDenseUnlessItIsScored) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 1, 4, 2, 32, 24, 7);
  EXPECT_EQ(RunRouter("dhsa:budget=20", a).lists, RunRouter("dense", a).lists);
  const RoutedRun scored =
      RunRouter("dhsa:budget=30,global=4,local=8,dense_tail=0,least_queries=1", a);
  EXPECT_DOUBLE_EQ(scored.counters.density(), 0.1);
}
TEST(Dhsa, TiesGoToTheFirstChunk) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 16, 4, 2, 16, 24, 8);
  std::fill(a.q.begin(), a.q.end(), 0.0f);
  const RoutedRun run = RunRouter("dhsa:budget=100,block=16,global=0,local=16,dense_tail=0", a);
  ASSERT_TRUE(run.status.ok()) << run.status;
  std::vector<uint32_t> want(84);
  std::iota(want.begin(), want.end(), 0);
  for (uint32_t s = 284; s < 300; ++s) want.push_back(s);
  EXPECT_EQ(run.lists.back(), want);
}
TEST(Dhsa, NanScoresAreNotSelected) {
  const AttentionData clean = MakeAttentionData(DataKind::kGaussian, 300, 130, 4, 2, 32, 24, 9);
  for (const AttentionData& a : WithNans(clean, 37 * 4 * 32, 100 * 2 * 32)) {
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule), a);
  }
}
TEST(Dhsa, RefusesWhatDoesNotFit) {
  const auto& routers = BuiltinRouters().attention;
  const auto said = [&](const char* policy) {
    return std::string(routers.Create(policy).status().message());
  };
  EXPECT_THAT(said("dhsa:boundaries=given"), testing::HasSubstr("at has 0 numbers"));
  EXPECT_THAT(said("dhsa:at=5/9"), testing::HasSubstr("go together; at has 2 numbers"));
  EXPECT_THAT(said("dhsa:boundaries=given,at=5/5"), testing::HasSubstr("number 2, 5, is not"));
  EXPECT_THAT(said("dhsa:boundaries=given,at=5.5"), testing::HasSubstr("number 1, 5.5, is not"));
  EXPECT_THAT(said("dhsa:boundaries=given,at=0"), testing::HasSubstr("outside [1,"));
  EXPECT_THAT(said("dhsa:block=16,least_queries=17"), testing::HasSubstr("at most block=16"));
}
}  // namespace dhsa_test
SLUICE_END_NAMESPACE
