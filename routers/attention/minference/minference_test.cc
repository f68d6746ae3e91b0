#include "sluice/routers/attention/minference/minference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/minference/minference_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace minference_test {
struct Rule {
  const char* text;
  attention::MInferenceReference reference;
};
const Rule kRules[] = {
    {"patterns=vertical_slash/20/12,sink=4,local=10,last=24,segment=128",
     {.patterns = {{'v', 20, 12}}, .sink = 4, .local = 10, .last = 24, .segment = 128}},
    {"patterns=vertical_slash/3/5,sink=7,local=9,segment=64,least_queries=1",
     {.patterns = {{'v', 3, 5}}, .sink = 7, .local = 9, .segment = 64, .least_queries = 1}},
    {"patterns=vertical_slash/0/40,sink=0,local=1",
     {.patterns = {{'v', 0, 40}}, .sink = 0, .local = 1}},
    {"patterns=vertical_slash/512/512", {.patterns = {{'v', 512, 512}}}},
    {"patterns=a_shape/5/31,segment=64", {.patterns = {{'a', 5, 31}}, .segment = 64}},
    {"patterns=a_shape/0/1,least_queries=2", {.patterns = {{'a', 0, 1}}, .least_queries = 2}},
    {"patterns=block_sparse/2,least_queries=1", {.patterns = {{'b', 2, 0}}, .least_queries = 1}},
    {"patterns=block_sparse/0,segment=128", {.patterns = {{'b', 0, 0}}, .segment = 128}},
    {"patterns=block_sparse/2147483648", {.patterns = {{'b', int64_t{1} << 31, 0}}}},
};
std::string Policy(const Rule& rule) { return absl::StrCat("minference:", rule.text); }

TEST(MInference, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule), a, c.Options());
  }
}
TEST(MInference, EveryHeadFollowsItsOwnPattern) {
  const char* policy =
      "minference:patterns=a_shape/4/40;vertical_slash/30/20;block_sparse/3;vertical_slash/9/2,"
      "sink=2,local=8,segment=128";
  const attention::MInferenceReference reference = {
      .patterns = {{'a', 4, 40}, {'v', 30, 20}, {'b', 3, 0}, {'v', 9, 2}},
      .sink = 2,
      .local = 8,
      .segment = 128};
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 700, 405, 4, 2, 32, 24, 2);
  ExpectListsOf(reference, policy, a);
  HarnessOptions o;
  o.chunk = 48;
  ExpectListsOf(reference, policy, a, o);
}
// Every query wants a key that all want and the key that stands 100 before it.
TEST(MInference, AColumnAndASlashAreFound) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 512, 512, 2, 1, 64, 16, 4);
  for (int64_t i = 100; i < 512; ++i) {
    for (int64_t x = 0; x < 2 * 64; ++x)
      a.q[i * 2 * 64 + x] = 3 * (a.k[(i - 100) * 64 + x % 64] + a.k[17 * 64 + x % 64]);
  }
  const RoutedRun run =
      RunRouter("minference:patterns=vertical_slash/1/2,sink=0,local=1,segment=128", a);
  ASSERT_TRUE(run.status.ok()) << run.status;
  for (int64_t i = 256; i < 512; ++i) {
    std::vector<uint32_t> want = {17};  // the tile's slash and own keys
    const int64_t tile = i / 64 * 64;
    for (int64_t s = tile - 100; s < tile - 36; ++s) want.push_back(static_cast<uint32_t>(s));
    for (int64_t s = tile; s <= i; ++s) want.push_back(static_cast<uint32_t>(s));
    EXPECT_EQ(run.lists[i * 2], want) << i;
  }
}
// Equal weights: the first keys, and of distances the longest ones.
TEST(MInference, TiesGoToTheFirstKeysAndTheLongestDistances) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 320, 64, 2, 1, 16, 24, 8);
  std::fill(a.q.begin(), a.q.end(), 0.0f);
  const RoutedRun run =
      RunRouter("minference:patterns=vertical_slash/70/3,sink=0,local=1,last=1,segment=64", a);
  ASSERT_TRUE(run.status.ok()) << run.status;
  std::vector<uint32_t> want(70);  // 70 columns; distances 319 and 318 reach key 1; own tile
  std::iota(want.begin(), want.end(), 0);
  for (uint32_t s = 256; s < 320; ++s) want.push_back(s);
  EXPECT_EQ(run.lists.back(), want);
}
TEST(MInference, FullBudgetIsDenseToTheBit) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 600, 500, 4, 2, 32, 24, 7);
  const RoutedRun dense = RunRouter("dense", a);
  for (const char* patterns : {"vertical_slash/2147483648/0", "vertical_slash/0/2147483648",
                               "a_shape/0/2147483648", "block_sparse/2147483648"}) {
    const RoutedRun full = RunRouter(absl::StrCat("minference:patterns=", patterns), a);
    EXPECT_EQ(full.lists, dense.lists) << patterns;
    EXPECT_EQ(full.o, dense.o) << patterns;
  }
}
TEST(MInference, ChunksOfSegmentsGiveTheListsOfOneCall) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 460, 460, 4, 2, 32, 24, 5);
  for (const char* patterns : {"vertical_slash/40/20", "a_shape/4/40", "block_sparse/3"}) {
    const std::string policy =
        absl::StrCat("minference:segment=128,sink=4,local=16,patterns=", patterns);
    for (int64_t chunk : {128, 256}) {
      HarnessOptions o;
      o.chunk = chunk;
      EXPECT_EQ(RunRouter(policy, a, o).lists, RunRouter(policy, a).lists) << policy << chunk;
    }
  }
}
TEST(MInference, DecodeIsDenseUnlessItIsScored) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 1, 4, 2, 32, 24, 7);
  EXPECT_EQ(RunRouter("minference", a).lists, RunRouter("dense", a).lists);
  const RoutedRun scored =
      RunRouter("minference:patterns=vertical_slash/20/20,sink=4,local=8,least_queries=1", a);
  EXPECT_LE(scored.counters.density(), 40.0 / 300);
}
TEST(MInference, NanScoresAreNotSelected) {
  const AttentionData clean = MakeAttentionData(DataKind::kGaussian, 300, 130, 4, 2, 32, 24, 9);
  for (const AttentionData& a : WithNans(clean, 127 * 4 * 32, 250 * 2 * 32)) {
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule), a);
  }
}
TEST(MInference, RefusesWhatDoesNotFit) {
  const auto& routers = BuiltinRouters().attention;
  for (const char* bad :
       {"", "v/1/2", "a_shape/4", "a_shape/4/0", "vertical_slash/4/-1", "vertical_slash/1/2/3",
        "block_sparse/1/2", "block_sparse/x", "block_sparse/2147483649", "a_shape/4/8;"}) {
    const absl::Status s = routers.Create(absl::StrCat("minference:patterns=", bad)).status();
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(s.message()), testing::HasSubstr("is not a_shape/SINK/WINDOW")) << bad;
  }
  const auto said = [&](const char* policy) {
    return std::string(routers.Create(policy).status().message());
  };
  EXPECT_THAT(said("minference:segment=100"), testing::HasSubstr("not a multiple of 64"));
  EXPECT_THAT(said("minference:segment=64,last=65"), testing::HasSubstr("at most segment=64"));
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 64, 4, 2, 32, 32, 1);
  EXPECT_THAT(
      std::string(RunRouter("minference:patterns=a_shape/1/8;a_shape/1/8", a).status.message()),
      testing::HasSubstr("2 patterns, but the model has 4 query heads"));
}
}  // namespace minference_test
SLUICE_END_NAMESPACE
