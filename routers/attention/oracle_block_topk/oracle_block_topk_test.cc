#include "sluice/routers/attention/oracle_block_topk/oracle_block_topk.h"

#include <gtest/gtest.h>

#include "sluice/routers/attention/oracle_block_topk/oracle_block_topk_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace oracle_block_topk_test {
struct Rule {
  const char* text;
  attention::OracleBlockTopKReference reference;
};
const Rule kRules[] = {
    {"block=16,k=4", {.block = 16, .budget = {.k = 4}}},
    {"block=16,k=6,sink=0,local=1", {.block = 16, .budget = {.k = 6, .sink = 0, .local = 1}}},
    {"block=32,k=2,sink=2,local=3,force_counts_in_budget=false",
     {.block = 32, .budget = {.k = 2, .sink = 2, .local = 3, .count_forced = false}}},
    {"block=16,k=0,p=0.7", {.block = 16, .budget = {.p = 0.7}}},
    {"block=16,k=0,p=0.4,sink=0,local=1,force_counts_in_budget=false",
     {.block = 16, .budget = {.p = 0.4, .sink = 0, .local = 1, .count_forced = false}}},
    {"block=128,k=2,local=1", {.block = 128, .budget = {.k = 2, .local = 1}}},
    {"block=16,k=2147483648", {.block = 16, .budget = {.k = int64_t{1} << 31}}},
};
std::string Oracle(const char* text) { return absl::StrCat("oracle_block_topk:", text); }

TEST(OracleBlockTopK, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (const Rule& rule : kRules)
      ExpectListsOf(rule.reference, Oracle(rule.text), a, c.Options());
  }
}
TEST(OracleBlockTopK, TiesGoToTheLowestBlock) {
  for (int64_t q : {100, 1}) {
    const AttentionData a =
        WithTies(MakeAttentionData(DataKind::kGaussian, 333, q, 4, 2, 16, 24, 2), 16);
    for (int64_t k : {3, 5, 8, 12}) {
      const attention::OracleBlockTopKReference want = {.block = 16, .budget = {.k = k}};
      ExpectListsOf(want, Oracle(absl::StrCat("block=16,k=", k).c_str()), a);
    }
  }
}
// Every other query looks at its own key, which leaves the choice to the rest.
TEST(OracleBlockTopK, TheOwnKeyHasItsShare) {
  AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 300, 4, 2, 32, 24, 5);
  for (int64_t i = 0; i < 300; i += 2) {
    for (int64_t h = 0; h < 4; ++h) {
      for (int64_t x = 0; x < 32; ++x)
        a.q[(i * 4 + h) * 32 + x] += 2 * a.k[(i * 2 + h / 2) * 32 + x];
    }
  }
  for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Oracle(rule.text), a);
}
// One query of NaN makes the mass of every block NaN, and no block is chosen by that.
TEST(OracleBlockTopK, NanAndInfiniteScores) {
  const AttentionData clean = MakeAttentionData(DataKind::kGaussian, 300, 130, 4, 2, 32, 24, 3);
  AttentionData query = clean;
  query.q[5 * 4 * 32] = NAN;
  AttentionData key = clean;
  key.k[250 * 2 * 32] = NAN;
  AttentionData hidden = clean;  // logits of -inf: no mass
  for (size_t i = 0; i < hidden.q.size(); i += 32) hidden.q[i] = std::fabs(hidden.q[i]) + 0.1f;
  for (int64_t s = 40; s < 120; ++s) hidden.k[s * 2 * 32] = -INFINITY;
  for (const AttentionData* a : {&query, &key, &hidden}) {
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Oracle(rule.text), *a);
  }
}
// One query and head a list: no other choice of as many blocks can carry more, and its like by
// pooled keys carries less.
TEST(OracleBlockTopK, PicksTheBlocksOfMostMass) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 640, 64, 2, 2, 32, 32, 1);
  HarnessOptions o;
  o.quality = true;
  o.chunk = 1;
  const RoutedRun r = RunRouter("oracle_block_topk:block=64,k=3,sink=0,local=1", a, o);
  const RoutedRun pool = RunRouter("mean_pool:block=64,k=3,sink=0,local=1", a, o);
  ASSERT_TRUE(r.status.ok()) << r.status;
  ASSERT_TRUE(pool.status.ok()) << pool.status;
  EXPECT_GT(r.quality.mass_recall.mean(), pool.quality.mass_recall.mean());
  EXPECT_LT(r.quality.regret.mean(), pool.quality.regret.mean());
}
}  // namespace oracle_block_topk_test
SLUICE_END_NAMESPACE
