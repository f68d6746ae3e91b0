#include "sluice/pruners/weight/dsnot/dsnot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/pruners/builtin.h"
#include "sluice/pruners/weight/dsnot/dsnot_reference.h"
#include "sluice/tests/support/calibration.h"

SLUICE_BEGIN_NAMESPACE
namespace dsnot_test {
using Kind = PruneTarget::Kind;
using Scope = PruneTarget::Scope;
using testing::HasSubstr;

absl::StatusOr<Mask> Prune(const std::string& spec, const PruneInputs& in) {
  SLUICE_ASSIGN_OR_RETURN(const auto pruner, BuiltinPruners().pruners.Create(spec));
  return pruner->Prune(in, {});
}
Mask Start(const Calibration& c, const PruneTarget& t, const std::string& by = "magnitude") {
  return *Prune("weight/" + by, c.Inputs(t));
}
std::vector<double> Row(const std::vector<float>& w, int64_t r, int64_t cols) {
  return {w.begin() + r * cols, w.begin() + (r + 1) * cols};
}
// Of one row's repair, as the reference counts: sums over tokens, averaged over samples.
double Error(const Calibration& c, const Mask& mask, int64_t r) {
  return reference::DsnotError(Row(c.w, r, mask.cols()), reference::DsnotColumns(c.samples),
                               Kept(mask)[r]);
}
// d^T X^T X d of what is missing.
double SquaredError(const Calibration& c, const Mask& mask, int64_t r) {
  double all = 0;
  for (const auto& sample : c.samples) {
    for (const auto& token : sample) {
      double y = 0;
      for (int64_t i = 0; i < mask.cols(); ++i)
        y += mask.kept(r, i) ? 0 : token[i] * static_cast<double>(c.w[r * mask.cols() + i]);
      all += y * y;
    }
  }
  return all;
}

struct Case {
  const char* settings;
  reference::DsnotOptions options;
};
TEST(Dsnot, RepairsAsTheReferenceDoes) {
  constexpr int64_t kRows = 24, kCols = 96;
  const std::vector<Case> cases = {
      {"", {}},
      {":guard=false", {.guard = false}},
      {":guard=false,cycles=7", {.cycles = 7, .guard = false}},
      {":same_sign=true,guard=false", {.guard = false, .same_sign = true}},
      {":same_sign=false,guard=false", {.guard = false, .same_sign = false}},
      {":power=0", {.power = 0}},
      {":power=2,cycles=3", {.cycles = 3, .power = 2}},
  };
  int64_t moved = 0;
  for (uint64_t seed : {1, 2, 3}) {
    const Calibration c(kRows, kCols, seed);
    const reference::DsnotStats stats = reference::DsnotColumns(c.samples);
    const double per_sample = static_cast<double>(c.tokens) / static_cast<double>(c.samples.size());
    for (const PruneTarget& t :
         {PruneTarget{.ratio = 0.6}, PruneTarget{.kind = Kind::kNofM, .n = 2, .m = 4},
          PruneTarget{.kind = Kind::kNofM, .n = 1, .m = 8}}) {
      const Mask start = Start(c, t);
      for (const Case& k : cases) {
        const auto mask = Prune(std::string("weight/dsnot") + k.settings, c.Inputs(t, &start));
        ASSERT_TRUE(mask.ok()) << mask.status();
        reference::DsnotOptions o = k.options;
        o.threshold = 0.1 / 2048 * per_sample;
        o.group = t.kind == Kind::kNofM ? t.m : 0;
        for (int64_t r = 0; r < kRows; ++r)
          EXPECT_EQ(Kept(*mask)[r], reference::Dsnot(Row(c.w, r, kCols), stats, Kept(start)[r], o))
              << k.settings << " row " << r << " kind " << static_cast<int>(t.kind);
        moved += *mask != start;
      }
    }
  }
  EXPECT_EQ(moved, 3 * 3 * std::ssize(cases));
}
// The published queue runs on into weights that never went; most rows of 16 and 64 lose count so.
TEST(Dsnot, NarrowRowsKeepTheirCountsWithAndWithoutTheGuard) {
  for (int64_t cols : {16, 64}) {
    const Calibration c(100, cols, 4);
    const Mask start = Start(c, {.ratio = 0.6});
    for (const char* spec : {"weight/dsnot", "weight/dsnot:guard=false"}) {
      const auto mask = Prune(spec, c.Inputs({.ratio = 0.6}, &start));
      ASSERT_TRUE(mask.ok()) << mask.status();
      for (int64_t r = 0; r < 100; ++r) EXPECT_EQ(mask->CountKept(r), start.CountKept(r)) << r;
    }
  }
}
// Without the test of a swap's use the error swings about 0 until the cycles are spent.
TEST(Dsnot, TheGuardNeverLeavesARowWorse) {
  const Calibration c(100, 256, 5);
  const Mask start = Start(c, {.ratio = 0.6});
  const Mask guarded = *Prune("weight/dsnot", c.Inputs({.ratio = 0.6}, &start));
  const Mask published = *Prune("weight/dsnot:guard=false", c.Inputs({.ratio = 0.6}, &start));
  int64_t worse = 0;
  double before = 0;
  double after = 0;
  for (int64_t r = 0; r < 100; ++r) {
    const double at_start = std::abs(Error(c, start, r));
    EXPECT_LE(std::abs(Error(c, guarded, r)), at_start * (1 + 1e-6)) << r;
    worse += std::abs(Error(c, published, r)) > at_start;
    before += at_start;
    after += std::abs(Error(c, guarded, r));
  }
  EXPECT_GT(worse, 0);
  EXPECT_LT(after, 0.3 * before);
}
TEST(Dsnot, TheErrorThatItTracksIsThatOfTheMask) {
  constexpr int64_t kRows = 40, kCols = 128;
  const Calibration c(kRows, kCols, 6);
  const Mask start = Start(c, {.ratio = 0.6});
  std::vector<int64_t> all_swaps;
  for (bool guard : {true, false}) {
    const weight::Dsnot::Config config = {.guard = guard};
    const weight::dsnot::Columns columns(c.Inputs({}).stats, 1, true);
    weight::dsnot::RowRepair repair(config, columns, 0);
    int64_t swaps = 0;
    for (int64_t r = 0; r < kRows; ++r) {
      std::vector<uint8_t> kept(kCols);
      for (int64_t i = 0; i < kCols; ++i) kept[i] = start.kept(r, i);
      const weight::dsnot::Outcome o = repair.Run(&c.w[r * kCols], kept);
      double gone = 0;
      for (int64_t i = 0; i < kCols; ++i)
        gone += kept[i] ? 0 : static_cast<double>(c.w[r * kCols + i]) * c.mean[i];
      const double sums = static_cast<double>(c.tokens) / static_cast<double>(c.samples.size());
      EXPECT_NEAR(o.before * sums, Error(c, start, r), 1e-5 * std::abs(Error(c, start, r)) + 1e-4);
      EXPECT_NEAR(o.after, gone, 1e-5 * std::abs(o.before));
      swaps += o.swaps;
    }
    all_swaps.push_back(swaps);
  }
  // Without the guard a row swaps on, about 0, until a queue or the cycles end.
  EXPECT_LT(2 * all_swaps[0], all_swaps[1]);
}
TEST(Dsnot, NothingToDoLeavesTheMask) {
  constexpr int64_t kRows = 20, kCols = 64;
  Calibration c(kRows, kCols, 7);
  const Mask start = Start(c, {.ratio = 0.5});
  const auto repaired = [&](const std::string& settings, const PruneTarget& t, const Mask& from) {
    return *Prune("weight/dsnot" + settings, c.Inputs(t, &from));
  };
  EXPECT_NE(repaired("", {.ratio = 0.5}, start), start);
  EXPECT_EQ(repaired(":cycles=0", {.ratio = 0.5}, start), start);
  EXPECT_EQ(repaired(":threshold=inf", {.ratio = 0.5}, start), start);
  for (double ratio : {0.0, 1.0}) {
    const Mask all = Start(c, {.ratio = ratio});
    EXPECT_EQ(repaired(":guard=false", {.ratio = ratio}, all), all) << ratio;
  }
  c.mean.assign(kCols, 0);
  EXPECT_EQ(repaired(":guard=false,threshold=0", {.ratio = 0.5}, start), start);
}
// The threshold is of a token: neither longer nor more samples, nor larger inputs with it, matter.
TEST(Dsnot, ThresholdsAreOfAToken) {
  constexpr int64_t kRows = 20, kCols = 64;
  const Calibration one(kRows, kCols, 8);
  const Mask start = Start(one, {.ratio = 0.5});
  const Mask want = *Prune("weight/dsnot:threshold=2", one.Inputs({.ratio = 0.5}, &start));
  EXPECT_NE(want, start);
  EXPECT_NE(want, *Prune("weight/dsnot", one.Inputs({.ratio = 0.5}, &start)));

  Calibration twice = one;
  twice.tokens *= 2;
  for (float& x : twice.squares) x *= 2;
  EXPECT_EQ(*Prune("weight/dsnot:threshold=2", twice.Inputs({.ratio = 0.5}, &start)), want);
  const Calibration larger(kRows, kCols, 8, 16);
  EXPECT_EQ(*Prune("weight/dsnot:threshold=32", larger.Inputs({.ratio = 0.5}, &start)), want);
}
// Without variances of its own it takes them from the sums.
TEST(Dsnot, VariancesMayComeFromTheSums) {
  constexpr int64_t kRows = 20, kCols = 64;
  Calibration c(kRows, kCols, 9);
  const Mask start = Start(c, {.ratio = 0.5});
  const double n = static_cast<double>(c.tokens);
  for (int64_t i = 0; i < kCols; ++i)
    c.variance[i] =
        static_cast<float>(c.squares[i] / n - static_cast<double>(c.mean[i]) * c.mean[i]);
  const Mask given = *Prune("weight/dsnot", c.Inputs({.ratio = 0.5}, &start));
  c.variance.clear();
  EXPECT_EQ(*Prune("weight/dsnot", c.Inputs({.ratio = 0.5}, &start)), given);
}
TEST(Dsnot, AColumnWithoutVarianceRanksByTheSignOfWhatItGives) {
  // Two have gone and give 3 and 1, the second of a constant input: it comes back first.
  const std::vector<float> w = {3, 1, -4, -0.5f};
  const std::vector<float> mean = {1, 1, 1, 1}, squares = {2, 1, 2, 2}, variance = {1, 0, 1, 1};
  Mask start(1, 4, true);
  start.Set(0, 0, false);
  start.Set(0, 1, false);
  PruneInputs in;
  in.weights = {w.data(), 1, 4, 4};
  in.stats.tokens = 1;
  in.stats.mean = mean;
  in.stats.sum_squares = squares;
  in.stats.variance = variance;
  in.start = &start;
  EXPECT_EQ(Prune("weight/dsnot:cycles=1", in)->words()[0], 0b0110u);
}
TEST(Dsnot, ARowThatGrowsTooMuchIsUndone) {
  constexpr int64_t kRows = 100, kCols = 64;
  const Calibration c(kRows, kCols, 10);
  const Mask start = Start(c, {.ratio = 0.6}, "wanda");
  const Mask free = *Prune("weight/dsnot", c.Inputs({.ratio = 0.6}, &start));
  const Mask held = *Prune("weight/dsnot:growth=1", c.Inputs({.ratio = 0.6}, &start));
  int64_t grew = 0;
  for (int64_t r = 0; r < kRows; ++r) {
    const bool more = SquaredError(c, free, r) > SquaredError(c, start, r);
    grew += more;
    EXPECT_EQ(Kept(held)[r], Kept(more ? start : free)[r]) << r;
  }
  EXPECT_GT(grew, 0);
  EXPECT_LT(grew, kRows);
}
TEST(Dsnot, ErrorsSayWhatWasGivenAndAllowed) {
  Calibration c(4, 16, 11);
  const Mask start = Start(c, {.ratio = 0.5});
  const auto error = [&](const PruneTarget& t, const Mask* from, const char* settings = "") {
    return std::string(
        Prune(std::string("weight/dsnot") + settings, c.Inputs(t, from)).status().message());
  };
  EXPECT_THAT(error({}, nullptr), HasSubstr("needs a start mask"));
  EXPECT_THAT(error({.scope = Scope::kBlock}, &start), HasSubstr("served are the kinds"));
  Mask three(4, 16, false);
  for (int64_t i : {4, 5, 7}) three.Set(2, i, true);
  EXPECT_THAT(error({.kind = Kind::kNofM, .n = 2, .m = 4}, &three),
              HasSubstr("keeps 3 of the 4 at row 2, column 4; allowed: 2"));
  PruneInputs without = c.Inputs({}, &start);
  without.stats.gram = {};
  EXPECT_THAT(std::string(Prune("weight/dsnot:growth=2", without).status().message()),
              HasSubstr("growth=2 needs the Gram matrix"));
  EXPECT_THAT(error({}, &start, ":threshold=nan"), HasSubstr("cannot read 'nan'"));
  c.w[17] = NAN;
  EXPECT_THAT(error({}, &start), HasSubstr("the weight [1, 1] is nan; allowed: finite numbers"));
  c.w[17] = 0;
  c.mean[3] = INFINITY;
  EXPECT_THAT(error({}, &start), HasSubstr("mean of column 3 is inf"));
  c.mean[3] = 0;
  c.variance.clear();
  c.tokens = 0;
  EXPECT_THAT(error({}, &start), HasSubstr("statistics of 0 tokens; allowed: 1 or more"));
}
}  // namespace dsnot_test
SLUICE_END_NAMESPACE
