#include "sluice/pruners/weight/wanda/wanda.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/pruners/builtin.h"
#include "sluice/pruners/weight/wanda/wanda_reference.h"
#include "sluice/tests/support/calibration.h"

SLUICE_BEGIN_NAMESPACE
namespace wanda_test {
using Kind = PruneTarget::Kind;
using testing::HasSubstr;
constexpr int64_t kRows = 12, kCols = 72;

absl::StatusOr<Mask> Prune(const PruneInputs& in, const std::string& spec = "weight/wanda") {
  SLUICE_ASSIGN_OR_RETURN(const auto pruner, BuiltinPruners().pruners.Create(spec));
  return pruner->Prune(in, {});
}

TEST(Wanda, KeepsWhatTheReferenceKeeps) {
  for (uint64_t seed : {1, 2, 3}) {
    const Calibration c(kRows, kCols, seed);
    const std::vector<double> q = reference::WandaColumns(c.samples);
    for (double ratio : {0.0, 0.3, 0.5, 0.6, 0.99, 1.0}) {
      const auto stay = kCols - static_cast<int64_t>(std::floor(ratio * kCols));
      EXPECT_EQ(Kept(*Prune(c.Inputs({.ratio = ratio}))),
                reference::Wanda(c.Weights(), q, kCols, stay))
          << ratio;
    }
    EXPECT_EQ(Kept(*Prune(c.Inputs({.kind = Kind::kNofM, .n = 2, .m = 4}))),
              reference::Wanda(c.Weights(), q, 4, 2));
    EXPECT_EQ(Kept(*Prune(c.Inputs({.kind = Kind::kNofM, .n = 5, .m = 8}))),
              reference::Wanda(c.Weights(), q, 8, 5));
  }
}
TEST(Wanda, IsMagnitudeWhereAllInputsAreAlike) {
  Calibration c(kRows, kCols, 4);
  const PruneTarget half = {.ratio = 0.5};
  EXPECT_NE(*Prune(c.Inputs(half)), *Prune(c.Inputs(half), "weight/magnitude"));
  c.squares.assign(kCols, 3);
  EXPECT_EQ(*Prune(c.Inputs(half)), *Prune(c.Inputs(half), "weight/magnitude"));
}
TEST(Wanda, TheScaleOfTheInputsDoesNotMatter) {
  const Calibration one(kRows, kCols, 5);
  const Calibration ten(kRows, kCols, 5, 16);
  EXPECT_EQ(*Prune(one.Inputs({.ratio = 0.6})), *Prune(ten.Inputs({.ratio = 0.6})));
}
TEST(Wanda, WhatSawNoInputGoesFirstAndTiesKeepTheLowestIndex) {
  Calibration c(kRows, kCols, 6);
  c.squares.assign(kCols, 0);
  c.squares[5] = 1;
  const auto mask = Prune(c.Inputs({.kind = Kind::kCount, .count = 2}));
  ASSERT_TRUE(mask.ok()) << mask.status();
  for (int64_t r = 0; r < kRows; ++r) EXPECT_EQ(mask->words()[r * 2], 0b100001u);
}
TEST(Wanda, NaNWeightsGoFirst) {
  Calibration c(kRows, kCols, 7);
  c.w[3] = NAN;
  const auto mask = Prune(c.Inputs({.kind = Kind::kCount, .count = kCols - 1}));
  ASSERT_TRUE(mask.ok()) << mask.status();
  EXPECT_FALSE(mask->kept(0, 3));
}
TEST(Wanda, ErrorsSayWhatWasGivenAndAllowed) {
  const auto error = [](const Calibration& c) {
    return std::string(Prune(c.Inputs({})).status().message());
  };
  Calibration c(kRows, kCols, 8);
  c.squares[2] = NAN;
  EXPECT_THAT(error(c), HasSubstr("sum_squares of column 2 is nan; allowed are finite numbers"));
  c.squares[2] = -1;
  EXPECT_THAT(error(c), HasSubstr("sum_squares of column 2 is -1; allowed are finite numbers of at "
                                  "least 0"));
  c.squares.clear();
  EXPECT_THAT(error(c), HasSubstr("sum_squares has 0 entries, wanted 72"));
}
}  // namespace wanda_test
SLUICE_END_NAMESPACE
