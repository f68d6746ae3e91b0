#include "sluice/pruners/weight/sparse_gpt/sparse_gpt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/pruners/builtin.h"
#include "sluice/pruners/weight/sparse_gpt/sparse_gpt_reference.h"
#include "sluice/tests/support/calibration.h"

SLUICE_BEGIN_NAMESPACE
namespace sparse_gpt_test {
using Kind = PruneTarget::Kind;
using Scope = PruneTarget::Scope;
using testing::HasSubstr;
constexpr int64_t kRows = 9, kCols = 40;

absl::StatusOr<Mask> Prune(const std::string& spec, const PruneInputs& in) {
  SLUICE_ASSIGN_OR_RETURN(const auto pruner, BuiltinPruners().pruners.Create(spec));
  return pruner->Prune(in, {});
}
absl::StatusOr<std::vector<float>> Apply(const std::string& spec, const PruneInputs& in,
                                         const Mask& mask) {
  SLUICE_ASSIGN_OR_RETURN(const auto pruner, BuiltinPruners().pruners.Create(spec));
  std::vector<float> out(static_cast<size_t>(in.weights.rows * in.weights.cols), NAN);
  SLUICE_RETURN_IF_ERROR(
      pruner->Apply(in, mask, {}, {out.data(), in.weights.rows, in.weights.cols, in.weights.cols}));
  return out;
}
// d^T H d of a row's change, H damped as the method damps it.
double Loss(const reference::Matrix& h, const float* was, const float* is) {
  double sum = 0;
  for (size_t i = 0; i < h.size(); ++i) {
    for (size_t j = 0; j < h.size(); ++j)
      sum += (double{is[i]} - double{was[i]}) * h[i][j] * (double{is[j]} - double{was[j]});
  }
  return sum;
}

TEST(SparseGpt, MaskAndWeightsAreTheReferences) {
  struct Case {
    std::string settings;
    PruneTarget target;
    reference::SparseGptOptions options;
  };
  const PruneTarget two_of_four = {.kind = Kind::kNofM, .n = 2, .m = 4};
  const std::vector<Case> cases = {
      {"", {.ratio = 0.6}, {.gone = 24}},
      {":block=16", {.ratio = 0.6}, {.block = 16, .gone = 24}},
      {":block=7,damp=0.1", {.ratio = 0.33}, {.block = 7, .gone = 13, .damp = 0.1}},
      {":block=16",
       {.scope = Scope::kLayer, .ratio = 0.5},
       {.block = 16, .gone = 180, .together = true}},
      {":block=16", {.kind = Kind::kCount, .count = 5}, {.block = 16, .gone = 35}},
      {":block=6", two_of_four, {.group = 4, .stay = 2}},
      {"", {.kind = Kind::kNofM, .n = 3, .m = 8}, {.group = 8, .stay = 3}},
      {":block=8", {.ratio = 1}, {.block = 8, .gone = 40}},
  };
  for (uint64_t seed : {1, 2}) {
    const Calibration c(kRows, kCols, seed);
    for (const Case& k : cases) {
      const std::string spec = "weight/sparse_gpt" + k.settings;
      const auto want = reference::SparseGpt(c.Weights(), c.Gram(), k.options);
      const auto mask = Prune(spec, c.Inputs(k.target));
      ASSERT_TRUE(mask.ok()) << mask.status();
      EXPECT_EQ(Kept(*mask), want.kept) << spec;
      const auto w = Apply(spec, c.Inputs(k.target), *mask);
      ASSERT_TRUE(w.ok()) << w.status();
      for (int64_t i = 0; i < kRows * kCols; ++i)
        EXPECT_NEAR((*w)[i], want.w[i / kCols][i % kCols], 1e-5) << spec << " " << i;
    }
  }
}
// A Hessian that is never filled gives every weight the same worth, and the mask says nothing.
TEST(SparseGpt, TheInputsDecide) {
  const Calibration c(kRows, kCols, 3);
  const PruneTarget half = {.ratio = 0.5};
  const Mask mask = *Prune("weight/sparse_gpt", c.Inputs(half));
  EXPECT_NE(mask, *Prune("weight/magnitude", c.Inputs(half)));
  EXPECT_NE(mask, *Prune("weight/wanda", c.Inputs(half)));
  PruneInputs without = c.Inputs(half);
  without.stats.gram = {};
  EXPECT_THAT(std::string(Prune("weight/sparse_gpt", without).status().message()),
              HasSubstr("gram is [0, 0], wanted [40, 40]"));
}
TEST(SparseGpt, InputsWithoutCorrelationAreWanda) {
  Calibration c(kRows, kCols, 4);
  for (int64_t i = 0; i < kCols * kCols; ++i)
    c.gram[i] = i % (kCols + 1) == 0 ? c.squares[i / kCols] : 0;
  const PruneTarget half = {.kind = Kind::kNofM, .n = 4, .m = 8};
  const Mask mask = *Prune("weight/sparse_gpt:damp=1e-9", c.Inputs(half));
  EXPECT_EQ(mask, *Prune("weight/wanda", c.Inputs(half)));
  const std::vector<float> w = *Apply("weight/sparse_gpt:damp=1e-9", c.Inputs(half), mask);
  for (int64_t i = 0; i < kRows * kCols; ++i)
    EXPECT_EQ(w[i], mask.kept(i / kCols, i % kCols) ? c.w[i] : 0) << i;
}
// Whoever chose the mask, what stays makes up for what went.
TEST(SparseGpt, AppliesAnyMaskAtLessLoss) {
  const Calibration c(kRows, kCols, 5);
  const reference::Matrix h = reference::Damped(c.Gram(), 0.01);
  for (const char* by : {"weight/magnitude", "weight/wanda", "weight/sparse_gpt"}) {
    const Mask mask = *Prune(by, c.Inputs({.ratio = 0.6}));
    const std::vector<float> plain = *Apply("weight/wanda", c.Inputs({}), mask);
    const std::vector<float> made_up = *Apply("weight/sparse_gpt", c.Inputs({}), mask);
    double before = 0;
    double after = 0;
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t i = 0; i < kCols; ++i) {
        EXPECT_EQ(plain[r * kCols + i], mask.kept(r, i) ? c.w[r * kCols + i] : 0);
        EXPECT_TRUE(mask.kept(r, i) || made_up[r * kCols + i] == 0);
      }
      before += Loss(h, &c.w[r * kCols], &plain[r * kCols]);
      after += Loss(h, &c.w[r * kCols], &made_up[r * kCols]);
    }
    EXPECT_LT(after, 0.95 * before) << by;
  }
  const Mask all(kRows, kCols, true);
  EXPECT_EQ(*Apply("weight/sparse_gpt", c.Inputs({}), all), c.w);
}
// Where all that goes stands left of all that stays, nothing does better: at the least loss its
// slope is 0 along every weight that stays.
TEST(SparseGpt, WhatIsRightOfTheGapMakesUpForItAtBest) {
  const Calibration c(kRows, kCols, 9);
  const reference::Matrix h = reference::Damped(c.Gram(), 0.01);
  Mask mask(kRows, kCols, true);
  for (int64_t i = 0; i < kCols / 3; ++i) mask.Set(4, i, false);
  const std::vector<float> w = *Apply("weight/sparse_gpt:block=16", c.Inputs({}), mask);
  const float* was = &c.w[4 * kCols];
  const float* is = &w[4 * kCols];
  for (int64_t k = kCols / 3; k < kCols; ++k) {
    double slope = 0;
    double size = 0;
    for (int64_t i = 0; i < kCols; ++i) {
      slope += h[k][i] * (double{is[i]} - double{was[i]});
      size += std::abs(h[k][i] * (double{is[i]} - double{was[i]}));
    }
    EXPECT_LT(std::abs(slope), 1e-5 * size) << k;
  }
}
TEST(SparseGpt, AColumnThatSawNoInputGoesFirstAndIsZero) {
  Calibration c(kRows, kCols, 6);
  for (int64_t i = 0; i < kCols; ++i) {
    c.gram[i * kCols + 3] = 0;
    c.gram[3 * kCols + i] = 0;
  }
  for (int64_t r = 0; r < kRows; ++r) c.w[r * kCols + 3] = 100;
  const Mask mask =
      *Prune("weight/sparse_gpt", c.Inputs({.kind = Kind::kCount, .count = kCols - 1}));
  for (int64_t r = 0; r < kRows; ++r) EXPECT_FALSE(mask.kept(r, 3)) << r;
  const Mask all(kRows, kCols, true);
  const std::vector<float> w = *Apply("weight/sparse_gpt", c.Inputs({}), all);
  for (int64_t i = 0; i < kRows * kCols; ++i) EXPECT_EQ(w[i], i % kCols == 3 ? 0 : c.w[i]);
}
TEST(SparseGpt, WhatIsGoneStaysGone) {
  const Calibration c(kRows, kCols, 7);
  const Mask start = *Prune("weight/magnitude", c.Inputs({.kind = Kind::kNofM, .n = 3, .m = 4}));
  const Mask mask = *Prune("weight/sparse_gpt:block=8", c.Inputs({.ratio = 0.5}, &start));
  for (int64_t r = 0; r < kRows; ++r) {
    EXPECT_EQ(mask.CountKept(r), kCols / 2);
    for (int64_t i = 0; i < kCols; ++i) EXPECT_LE(mask.kept(r, i), start.kept(r, i));
  }
}
TEST(SparseGpt, ErrorsSayWhatWasGivenAndAllowed) {
  Calibration c(kRows, kCols, 8);
  const auto error = [&](const PruneTarget& t) {
    return std::string(Prune("weight/sparse_gpt", c.Inputs(t)).status().message());
  };
  EXPECT_THAT(error({.scope = Scope::kBlock}), HasSubstr("served are the kinds"));
  EXPECT_THAT(error({.kind = Kind::kNofM, .n = 2, .m = 7}),
              HasSubstr("width 40 is no multiple of M = 7"));
  const Mask wrong(kRows, kCols - 1, true);
  EXPECT_THAT(std::string(Apply("weight/sparse_gpt", c.Inputs({}), wrong).status().message()),
              HasSubstr("mask [9, 39] for weights [9, 40]"));
  c.w[41] = INFINITY;
  EXPECT_THAT(error({}), HasSubstr("the weight [1, 1] is inf; allowed: finite numbers"));
  c.w[41] = 1;
  c.gram[1] = c.gram[kCols] = 1e9;
  EXPECT_THAT(error({}), HasSubstr("not positive definite"));
  c.gram[1] = NAN;
  EXPECT_THAT(error({}), HasSubstr("row 0 of gram of column 1 is nan"));
}
}  // namespace sparse_gpt_test
SLUICE_END_NAMESPACE
