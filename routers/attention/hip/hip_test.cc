#include "sluice/routers/attention/hip/hip.h"

#include <gtest/gtest.h>

#include "sluice/routers/attention/hip/hip_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace hip_test {
struct Rule {
  const char* text;
  attention::HipReference reference;
};
const Rule kRules[] = {
    {"hip:mask_k=16,block_q=16,stride_q=1,block_k=1,sink=4,window=16",
     {.mask_k = 16, .block_q = 16, .stride_q = 1, .block_k = 1, .sink = 4, .window = 16}},
    {"hip:mask_k=32,block_q=64,stride_q=2,block_k=2,sink=5,window=33",
     {.mask_k = 32, .block_q = 64, .stride_q = 2, .block_k = 2, .sink = 5, .window = 33}},
    {"hip:mask_k=24,block_q=32,stride_q=5,block_k=8,sink=0,window=1",
     {.mask_k = 24, .block_q = 32, .stride_q = 5, .block_k = 8, .sink = 0, .window = 1}},
    {"hip:mask_k=128,block_q=7,stride_q=64,block_k=4,sink=16,window=64",
     {.mask_k = 128, .block_q = 7, .stride_q = 64, .block_k = 4, .sink = 16, .window = 64}},
    {"hip", {}},
    {"hip:mask_k=2147483648,window=8", {.mask_k = int64_t{1} << 31, .window = 8}},
};

TEST(Hip, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, rule.text, a, c.Options());
  }
}
TEST(Hip, TiesGoToTheLowestGroup) {
  for (int64_t q : {100, 1}) {
    const AttentionData a =
        WithTies(MakeAttentionData(DataKind::kGaussian, 333, q, 4, 2, 16, 24, 2), 16);
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, rule.text, a);
  }
}
TEST(Hip, NanAndInfiniteScoresAreNotSelected) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 100, 4, 2, 32, 24, 3);
  a.q[5 * 4 * 32] = NAN;
  for (int64_t s = 0; s < 300; s += 3) a.k[s * 2 * 32] = NAN;
  for (int64_t s = 60; s < 90; ++s) a.k[(s * 2 + 1) * 32] = -INFINITY;
  for (const Rule& rule : kRules) ExpectListsOf(rule.reference, rule.text, a);
}
// A spike in the middle of one of the first groups is found when the centres of all halves above it
// show it too, and when no centre does it is not: a representative may miss it.
TEST(Hip, FindsASpikeThatItsGroupsShow) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 1040, 16, 1, 1, 32, 32, 1);
  for (float& x : a.k) x *= 0.01f;
  const auto spike = [&](int64_t s) {
    for (int64_t x = 0; x < 32; ++x) a.k[s * 32 + x] = a.q[x] * 2;
  };
  const std::string policy = "hip:mask_k=16,block_q=16,stride_q=1,block_k=1,sink=16,window=16";
  const auto keeps = [&](uint32_t s) {
    const RoutedRun r = RunRouter(policy, a);
    EXPECT_TRUE(r.status.ok()) << r.status;
    return std::binary_search(r.lists[0].begin(), r.lists[0].end(), s);
  };
  // Candidates are [16, 1009): 993 keys, 16 groups of 62. The sixth is [326, 388), its first half
  // [326, 357) has its centre at 341, then [326, 342) at 334, [326, 334) at 330, [326, 330) at 328
  // and [326, 328) at 327.
  spike(335);
  EXPECT_FALSE(keeps(335));
  for (int64_t centre : {341, 334, 330, 328}) spike(centre);
  EXPECT_FALSE(keeps(341));
  spike(327);
  EXPECT_TRUE(keeps(327));
}
TEST(Hip, BudgetIsKept) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 2000, 64, 4, 2, 32, 32, 2);
  const RoutedRun r = RunRouter("hip:mask_k=64,sink=16,window=32", a);
  ASSERT_TRUE(r.status.ok()) << r.status;
  for (int64_t i = 0; i < 64; ++i) {
    // The window begins 31 keys before the first query; a key that fills no block may precede it.
    const int64_t local = 32 + i;
    for (int64_t h = 0; h < 4; ++h) {
      EXPECT_GE(std::ssize(r.lists[i * 4 + h]), 64 + 16 + local);
      EXPECT_LE(std::ssize(r.lists[i * 4 + h]), 64 + 16 + local + 1);
    }
  }
}
TEST(Hip, RefusesABudgetOfPartsOfBlocks) {
  EXPECT_FALSE(BuiltinRouters().attention.Create("hip:mask_k=15,block_k=2").ok());
}
}  // namespace hip_test
SLUICE_END_NAMESPACE
