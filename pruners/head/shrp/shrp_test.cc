#include "sluice/pruners/head/shrp/shrp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/pruners/builtin.h"
#include "sluice/pruners/head/shrp/shrp_reference.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace head {
namespace shrp_test {
constexpr int64_t kWidth = 48, kHeads = 12;
const RandomWeights& Weights() {
  static const auto* w = new RandomWeights({{"width", kWidth}, {"heads", kHeads}});
  return *w;
}
// Items are the rows of x, or the sequences that item_rows cuts them into.
void Route(const std::vector<float>& x, AssignmentBuffer& out,
           const std::vector<int64_t>& item_rows = {}) {
  auto router = BuiltinPruners().routers.Create("head/shrp:layer=3", &Weights());
  ASSERT_TRUE(router.ok()) << router.status();
  const int64_t rows = std::ssize(x) / kWidth;
  const int64_t n = item_rows.empty() ? rows : std::ssize(item_rows) - 1;
  auto plan = (*router)->MakePlan({.items = n, .hidden = kWidth, .rows = rows});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ((*plan)->info().shape.units, kHeads);
  OwnedWorkspace memory((*plan)->info().workspace_bytes);
  out.Reserve(n, (*plan)->info().max_entries);
  RouteInputs in;
  in.items = n;
  in.hidden = {x.data(), rows, kWidth, kWidth};
  in.item_rows = item_rows;
  const absl::Status s = (*router)->Run(**plan, in, {memory.workspace(), nullptr}, out.view());
  ASSERT_TRUE(s.ok()) << s;
  EXPECT_TRUE(ValidateAssignment(out.view()).ok()) << ValidateAssignment(out.view());
}
TEST(Shrp, PoolsTheRowsOfItsSequences) {
  const std::vector<int64_t> item_rows = {0, 3, 3, 10, 40};
  const std::vector<float> x = RandomFeatures(40, kWidth, 6);
  AssignmentBuffer out;
  Route(x, out, item_rows);
  for (size_t i = 0; i + 1 < item_rows.size(); ++i) {
    reference::Rows rows;
    for (int64_t r = item_rows[i]; r < item_rows[i + 1]; ++r)
      rows.push_back({x.begin() + r * kWidth, x.begin() + (r + 1) * kWidth});
    if (rows.empty()) continue;
    const std::vector<double> want = reference::ShrpLogits(Weights(), 3, rows, kHeads);
    EXPECT_EQ(out.view().unit[i], std::max_element(want.begin(), want.end()) - want.begin()) << i;
  }
}
TEST(Shrp, PicksTheTopHeadOfTheReference) {
  const std::vector<float> x = RandomFeatures(40, kWidth, 1);
  AssignmentBuffer r;
  Route(x, r);
  shrp::Usage usage(kHeads);
  usage.Add(r.view());
  double sum = 0;
  for (double s : usage.shares()) sum += s;
  EXPECT_NEAR(sum, 1, 1e-12);
  for (size_t i = 0; i < 40; ++i) {
    const reference::Rows row = {{x.begin() + static_cast<int64_t>(i) * kWidth,
                                  x.begin() + static_cast<int64_t>(i + 1) * kWidth}};
    const std::vector<double> want = reference::ShrpLogits(Weights(), 3, row, kHeads);
    EXPECT_EQ(r.view().unit[i], std::max_element(want.begin(), want.end()) - want.begin()) << i;
  }
}
TEST(Shrp, OneHeadTakesEverything) {
  const RandomWeights one({{"width", kWidth}, {"heads", 1}});
  for (float x : {-3.0f, 0.0f, 3.0f}) {
    EXPECT_EQ(Shrp::Decide(&x, 1), 0);
  }
  auto r = Shrp::Create({}, one);
  ASSERT_TRUE(r.ok()) << r.status();
  const std::vector<float> x = RandomFeatures(20, kWidth, 2);
  float logit = 0;
  for (int64_t i = 0; i < 20; ++i) EXPECT_EQ(r->Pick(x.data() + i * kWidth, &logit), 0);
}
TEST(Shrp, PoolsTheMeanOfTheTokens) {
  const std::vector<float> x = {1, 2, 3, 6};
  float out[2];
  shrp::PoolSequence(x.data(), 2, 2, out);
  EXPECT_EQ(out[0], 2);
  EXPECT_EQ(out[1], 4);
}
TEST(Shrp, FreezeKeepsTheMostUsedHead) {
  const auto freeze = [](std::vector<double> u) {
    return pruning::MostUsed(absl::MakeConstSpan(u));
  };
  EXPECT_EQ(freeze({0.2, 0.5, 0.3}), 1);
  EXPECT_EQ(freeze({0.4, 0.2, 0.4}), 0);  // ties go to the lowest index
  EXPECT_EQ(freeze({NAN, 0.1, 0.2}), 2);
  EXPECT_EQ(freeze({NAN}), -1);
  EXPECT_EQ(freeze({}), -1);
  EXPECT_EQ(freeze({1}), 0);
  // Permuting the experts permutes usage, and what is kept with it.
  shrp::Usage a(4), b(4);
  const int32_t permuted[4] = {2, 0, 3, 1};
  for (int32_t e : {1, 1, 3, 1, 0}) {
    a.Add(e);
    b.Add(permuted[e]);
  }
  EXPECT_EQ(permuted[freeze(a.shares())], freeze(b.shares()));
}
TEST(Shrp, NaNIsNeverPicked) {
  const float odd[] = {NAN, -1, 2, NAN}, none[] = {NAN, NAN};
  EXPECT_EQ(Shrp::Decide(odd, 4), 2);
  EXPECT_EQ(Shrp::Decide(none, 2), 0);
  std::vector<float> x = RandomFeatures(2, kWidth, 4);
  x[3] = NAN;
  AssignmentBuffer r;
  Route(x, r);
  EXPECT_EQ(r.view().unit[0], 0);
  EXPECT_EQ(r.view().nan_scores, kHeads);  // a NaN input makes every logit of its item one
}
TEST(Shrp, AccountsForTheSizesOfBertBase) {
  // A pruned layer of 64 wide heads and an expander of 96 in BERT-base; both layer norms counted:
  // 231,456 as published figures imply, here with the one norm that is kept 1,536 fewer.
  EXPECT_EQ(shrp::PrunedLayer(768, 64, 96, 128).parameters, 231456 - 1536);
  EXPECT_EQ(shrp::DenseLayer(768, 3072, 128).parameters, 7087872);
  for (double scale :
       {1.0, 0.25}) {  // BERT-base, and the bundled encoder at a quarter of its width
    const shrp::Cost d = shrp::DenseLayer(768 * scale, 3072 * scale, 128),
                     p = shrp::PrunedLayer(768 * scale, 64 * scale, 96 * scale, 128);
    EXPECT_NEAR(0.5 * (1 - p.parameters / d.parameters), 0.48, 0.01) << scale;
    EXPECT_NEAR((d.macs + 11 * p.macs) / (12 * d.macs), 0.115, 0.007) << scale;
  }
}
TEST(Shrp, ErrorsSayWhatIsWrong) {
  const auto message = [](const auto& made) { return std::string(made.status().message()); };
  EXPECT_THAT(message(BuiltinPruners().routers.Create("shrp")),
              testing::HasSubstr("needs trained weights"));
  const RandomWeights odd({{"width", 0}, {"heads", 4}});
  EXPECT_THAT(message(BuiltinPruners().routers.Create("shrp", &odd)),
              testing::HasSubstr("allowed 1 to"));
  auto r = BuiltinPruners().routers.Create("shrp", &Weights());
  EXPECT_THAT(message((*r)->MakePlan({.items = 4, .units = 2, .hidden = kWidth})),
              testing::HasSubstr("wanted 12 units"));
}
}  // namespace shrp_test
}  // namespace head
SLUICE_END_NAMESPACE
