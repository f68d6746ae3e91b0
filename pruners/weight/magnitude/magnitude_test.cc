#include "sluice/pruners/weight/magnitude/magnitude.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/pruners/builtin.h"
#include "sluice/pruners/common/chain.h"
#include "sluice/pruners/common/freeze.h"
#include "sluice/pruners/weight/magnitude/magnitude_reference.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace magnitude_test {
using Kind = PruneTarget::Kind;
using Scope = PruneTarget::Scope;
constexpr int64_t kRows = 12, kCols = 72;

struct Problem {
  std::vector<float> w;
  explicit Problem(uint64_t seed) : w(RandomFeatures(kRows, kCols, seed)) {
    for (float& x : w) x = std::round(4 * x) / 4;  // with ties
  }
  MatrixView<const float> View() const { return {w.data(), kRows, kCols, kCols}; }
  reference::Weights Reference() const {
    reference::Weights rows;
    for (int64_t r = 0; r < kRows; ++r)
      rows.emplace_back(w.begin() + r * kCols, w.begin() + (r + 1) * kCols);
    return rows;
  }
};
absl::StatusOr<Mask> Prune(MatrixView<const float> w, const PruneTarget& t,
                           const Mask* start = nullptr) {
  auto pruner = BuiltinPruners().pruners.Create("weight/magnitude");
  if (!pruner.ok()) return pruner.status();
  PruneInputs in;
  in.weights = w;
  in.target = t;
  in.start = start;
  return (*pruner)->Prune(in, {});
}
void ExpectMask(const absl::StatusOr<Mask>& mask, const reference::Kept& want) {
  ASSERT_TRUE(mask.ok()) << mask.status();
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kCols; ++c) EXPECT_EQ(mask->kept(r, c), want[r][c]) << r << " " << c;
  }
}

TEST(Magnitude, EveryPatternAgreesWithTheReference) {
  const Problem p(1);
  for (double ratio : {0.0, 0.3, 0.5, 0.99, 1.0}) {
    const int64_t gone = static_cast<int64_t>(ratio * kCols);
    ExpectMask(Prune(p.View(), {.ratio = ratio}),
               reference::MagnitudeByRow(p.Reference(), kCols, kCols - gone));
    const int64_t all_gone = static_cast<int64_t>(ratio * kRows * kCols);
    ExpectMask(Prune(p.View(), {.scope = Scope::kLayer, .ratio = ratio}),
               reference::MagnitudeByLayer(p.Reference(), kRows * kCols - all_gone));
  }
  for (const auto& [n, m] :
       std::vector<std::pair<int64_t, int64_t>>{{2, 4}, {4, 8}, {0, 3}, {1, 1}})
    ExpectMask(Prune(p.View(), {.kind = Kind::kNofM, .n = n, .m = m}),
               reference::MagnitudeByRow(p.Reference(), static_cast<size_t>(m), n));
  ExpectMask(Prune(p.View(), {.kind = Kind::kCount, .count = 7}),
             reference::MagnitudeByRow(p.Reference(), kCols, 7));
  const PruneTarget blocks = {
      .kind = Kind::kCount, .scope = Scope::kBlock, .count = 11, .block_rows = 4, .block_cols = 8};
  ExpectMask(Prune(p.View(), blocks), reference::MagnitudeByBlock(p.Reference(), 4, 8, 11));
}
TEST(Magnitude, CostsAreABudget) {
  // Scores 4, 3, 2, 1 of costs 4, 1, 1, 1: the budget of 3 takes the three cheap ones, 4 fits no
  // more.
  const std::vector<float> w = {4, 3, 2, 1}, cost = {4, 1, 1, 1};
  PruneTarget t = {.kind = Kind::kCost, .cost = 3, .column_cost = cost};
  const auto mask = Prune({w.data(), 1, 4, 4}, t);
  ASSERT_TRUE(mask.ok());
  EXPECT_EQ(mask->words()[0], 0b1110u);
  t.column_cost = {};
  EXPECT_EQ(Prune({w.data(), 1, 4, 4}, t)->words()[0], 0b0111u);
}
TEST(Magnitude, AStartMaskOnlyLoses) {
  const Problem p(2);
  const auto half = Prune(p.View(), {.ratio = 0.5});
  const auto again = Prune(p.View(), {.ratio = 0.5}, &*half);
  EXPECT_EQ(*again, *half);  // the target counts what is gone already
  const auto less = Prune(p.View(), {.ratio = 0.75}, &*half);
  const auto at_once = Prune(p.View(), {.ratio = 0.75});
  EXPECT_EQ(*less, *at_once);
  const Mask none(kRows, kCols, false);
  EXPECT_EQ(Prune(p.View(), {.ratio = 0}, &none)->CountKept(), 0);

  std::vector<std::unique_ptr<const WeightPruner>> stages;
  stages.push_back(*BuiltinPruners().pruners.Create("weight/magnitude"));
  stages.push_back(*BuiltinPruners().pruners.Create("weight/magnitude:norm=square"));
  PruneInputs in;
  in.weights = p.View();
  in.target.ratio = 0.5;
  EXPECT_EQ(*pruning::PruneInStages(stages, in, {}), *half);
}
TEST(Magnitude, NaNGoesFirst) {
  const std::vector<float> w = {NAN, 1, 2, NAN, 3, 4, NAN, NAN};
  EXPECT_EQ(Prune({w.data(), 1, 8, 8}, {.ratio = 0.5})->words()[0], 0b00110110u);
  EXPECT_EQ(Prune({w.data(), 1, 8, 8}, {.ratio = 0.25})->words()[0], 0b00111111u);
}
TEST(Magnitude, ErrorsSayWhatWasGivenAndAllowed) {
  const Problem p(3);
  const auto error = [&](const PruneTarget& t, const Mask* start = nullptr) {
    return std::string(Prune(p.View(), t, start).status().message());
  };
  using testing::HasSubstr;
  EXPECT_THAT(error({.kind = Kind::kNofM, .n = 2, .m = 5}),
              HasSubstr("width 72 is no multiple of M = 5"));
  EXPECT_THAT(error({.kind = Kind::kNofM, .n = 5, .m = 4}), HasSubstr("5:4; allowed 0 <= N <= M"));
  EXPECT_THAT(error({.kind = Kind::kNofM, .scope = Scope::kLayer}), HasSubstr("scope row"));
  EXPECT_THAT(error({.ratio = 1.5}), HasSubstr("ratio 1.5 is outside [0, 1]"));
  EXPECT_THAT(error({.ratio = NAN}), HasSubstr("ratio nan is outside [0, 1]"));
  EXPECT_THAT(error({.kind = Kind::kCount, .count = 73}), HasSubstr("count 73 is outside [0, 72]"));
  EXPECT_THAT(error({.kind = Kind::kCost, .cost = NAN}), HasSubstr("cost nan"));
  EXPECT_THAT(error({.scope = Scope::kBlock, .block_rows = 5}),
              HasSubstr("blocks of [5, 1] do not tile [12, 72]"));
  const Mask wrong(kRows, 71, true);
  EXPECT_THAT(error({}, &wrong), HasSubstr("start mask [12, 71] for weights [12, 72]"));
  PruneInputs in;
  in.weights = p.View();
  const std::vector<float> mean(5);
  in.stats.mean = mean;
  EXPECT_THAT((*BuiltinPruners().pruners.Create("magnitude"))->Prune(in, {}).status().message(),
              HasSubstr("mean has 5 entries, wanted 72"));
}
// The heads that SHRP's router used most are what Freeze keeps.
TEST(Freeze, KeepsTheUnitsThatTheRouterUsed) {
  constexpr int64_t kWidth = 48, kHeads = 12;
  const RandomWeights weights({{"width", kWidth}, {"heads", kHeads}});
  const auto router = *BuiltinPruners().routers.Create("head/shrp", &weights);
  const auto plan = *router->MakePlan({.items = 50, .hidden = kWidth});
  OwnedWorkspace memory(plan->info().workspace_bytes);
  std::vector<std::vector<float>> x;
  std::vector<RouteInputs> data;
  std::vector<int64_t> used(kHeads);
  for (uint64_t b = 0; b < 3; ++b) x.push_back(RandomFeatures(50, kWidth, b));
  for (const auto& batch : x) {
    RouteInputs in;
    in.items = 50;
    in.hidden = {batch.data(), 50, kWidth, kWidth};
    data.push_back(in);
    AssignmentBuffer out;
    out.Reserve(50, 50);
    ASSERT_TRUE(router->Run(*plan, in, {memory.workspace(), nullptr}, out.view()).ok());
    for (int64_t i = 0; i < 50; ++i) ++used[out.view().unit[i]];
  }
  const PruneTarget three = {.kind = Kind::kCount, .count = 3};
  const auto mask = pruning::Freeze(*router, *plan, data, three, {memory.workspace(), nullptr});
  ASSERT_TRUE(mask.ok()) << mask.status();
  for (int64_t u = 0; u < kHeads; ++u) {
    int64_t ahead = 0;
    for (int64_t v = 0; v < kHeads; ++v)
      ahead += used[v] > used[u] || (used[v] == used[u] && v < u);
    EXPECT_EQ(mask->kept(0, u), ahead < 3) << u;
  }
  EXPECT_THAT(pruning::Freeze(*router, *plan, data, {.kind = Kind::kNofM}, {}).status().message(),
              testing::HasSubstr("freeze: target of kind 1"));
}
}  // namespace magnitude_test
SLUICE_END_NAMESPACE
