#include "sluice/policies/experiment/sequential.h"

#include <gtest/gtest.h>

#include <vector>

#include "sluice/policies/common/quantile.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace sequential_test {
TEST(Moments, AreTheTextbookOnes) {
  const double y[] = {1, 4, 2, 8}, x[] = {0, 2, 1, 3};
  Moments m;
  for (int i = 0; i < 4; ++i) m.Add(y[i], x[i]);
  m.Add(NAN);
  m.Add(1, INFINITY);
  EXPECT_EQ(m.count(), 4);
  EXPECT_EQ(m.skipped(), 2);
  EXPECT_DOUBLE_EQ(m.mean(), 3.75);
  EXPECT_NEAR(m.variance(), 9.583333333, 1e-8);    // 28.75 / 3
  EXPECT_NEAR(m.covariance(), 3.833333333, 1e-8);  // 11.5 / 3
  EXPECT_NEAR(m.variance_x(), 1.666666667, 1e-8);
}

// Units arrive in turn; the test is read after every one of them.
struct Peeked {
  bool mixture = false, sequence = false;  // a difference was declared at some time
  double half = 0, variance = 0;           // at the end
};
Peeked Peek(double effect, double noise_of_covariate, uint64_t seed, int units) {
  Moments a, b;
  MixtureTest test(0.1);
  Peeked p;
  for (int i = 0; i < units; ++i) {
    auto draw = [&](uint64_t unit) {
      return RandomUniform({seed, static_cast<uint64_t>(i), 0, unit, 0});
    };
    const double difficulty = draw(0);
    const bool in_b = draw(1) < 0.5;
    const double y = draw(2) < 0.2 + 0.6 * difficulty + (in_b ? effect : 0) ? 1 : 0;
    const double x =
        noise_of_covariate >= 1 ? 0 : difficulty + noise_of_covariate * (draw(3) - 0.5);
    (in_b ? b : a).Add(y, x);
    const Difference d = DifferenceOfMeans(a, b);
    p.mixture = p.mixture || test.Update(d) <= 0.05;
    const double half = SequenceHalfWidth(d, 0.05, 2000);
    p.sequence = p.sequence || (d.units >= 100 && std::abs(d.value) > half);
    p.half = half;
    p.variance = d.variance;
  }
  return p;
}

TEST(Sequential, AAgainstADeclaresNothingMoreThanFiveInAHundredTimes) {
  int mixture = 0, sequence = 0, adjusted = 0, naive = 0;
  constexpr int kRuns = 1000;
  for (uint64_t run = 0; run < kRuns; ++run) {
    const Peeked plain = Peek(0, 1, run, 2000), cuped = Peek(0, 0.2, 5000 + run, 2000);
    mixture += plain.mixture;
    sequence += plain.sequence;
    adjusted += cuped.mixture || cuped.sequence;
    // What reading a fixed-sample test every time would have done, for contrast.
    Moments a, b;
    bool declared = false;
    for (int i = 0; i < 2000; ++i) {
      auto draw = [&](uint64_t unit) {
        return RandomUniform({90000 + run, static_cast<uint64_t>(i), 0, unit, 0});
      };
      (draw(0) < 0.5 ? a : b).Add(draw(1) < 0.5 ? 1 : 0);
      const Difference d = DifferenceOfMeans(a, b);
      declared = declared || (d.units >= 100 && d.variance > 0 &&
                              std::abs(d.value) > 1.959964 * std::sqrt(d.variance));
    }
    naive += declared;
  }
  EXPECT_LE(mixture, 50);
  EXPECT_LE(sequence, 50);
  EXPECT_LE(adjusted, 50);
  EXPECT_GT(naive, 150);
}

TEST(Sequential, ARealDifferenceIsFound) {
  int mixture = 0, sequence = 0;
  for (uint64_t run = 0; run < 50; ++run) {
    const Peeked p = Peek(0.12, 1, run, 4000);
    mixture += p.mixture;
    sequence += p.sequence;
  }
  EXPECT_GE(mixture, 48);
  EXPECT_GE(sequence, 48);
}

TEST(Sequential, WhatWasKnownBeforeNarrowsTheInterval) {
  const Peeked plain = Peek(0.05, 1, 7, 4000), adjusted = Peek(0.05, 0.1, 7, 4000);
  EXPECT_LT(adjusted.variance, 0.9 * plain.variance);
  EXPECT_LT(adjusted.half, plain.half);
}

TEST(ClusteredMetric, WithOneOutcomeAUnitIsThePlainOne) {
  Moments a, b;
  ClusteredMetric ca, cb;
  for (uint64_t i = 0; i < 500; ++i) {
    auto draw = [&](uint64_t what) { return RandomUniform({3, i, 0, what, 0}); };
    const double x = draw(0), y = 0.5 * x + draw(1);
    (i % 2 == 0 ? a : b).Add(y, x);
    (i % 2 == 0 ? ca : cb).Add(0, 0, x, y);
  }
  const Difference plain = DifferenceOfMeans(a, b), clustered = DifferenceOfMeans(ca, cb);
  EXPECT_NEAR(plain.value, clustered.value, 1e-12);
  EXPECT_NEAR(plain.variance, clustered.variance, 1e-12);
  EXPECT_EQ(plain.units, clustered.units);
}

// Users differ, and each has many outcomes: the metric's mean moves with who came, not with how
// much they did.
TEST(ClusteredMetric, ManyOutcomesOfAFewUnitsDeclareNothing) {
  int clustered = 0, naive = 0, adjusted = 0;
  double kept = 0;
  constexpr int kRuns = 1000, kUnits = 300;
  for (uint64_t run = 0; run < kRuns; ++run) {
    struct Unit {
      double n = 0, y = 0;
    };
    std::vector<Unit> units(kUnits), again(kUnits);
    ClusteredMetric a, b, xa, xb;
    Moments na, nb;
    bool declared = false, wrongly = false, adjusted_declared = false;
    for (uint64_t i = 0; i < 3000; ++i) {
      auto draw = [&](uint64_t step, uint64_t unit, uint64_t what) {
        return RandomUniform({run, step, unit, what, 7});
      };
      const auto u =
          static_cast<uint64_t>(draw(i, 0, 0) * draw(i, 0, 1) * kUnits);  // some come often
      const bool in_b = draw(0, u, 2) < 0.5;
      const double taste = draw(0, u, 3), before = taste + 0.2 * (draw(0, u, 4) - 0.5);
      const double y = draw(i, 0, 5) < 0.1 + 0.8 * taste ? 1 : 0;
      Unit& unit = units[u];
      (in_b ? b : a).Add(unit.y, unit.n, 0, y);
      (in_b ? xb : xa).Add(unit.y, unit.n, before, y);
      unit.y += y;
      unit.n += 1;
      (in_b ? nb : na).Add(y);
      const Difference d = DifferenceOfMeans(a, b), wrong = DifferenceOfMeans(na, nb);
      double share = 1;
      const Difference x = DifferenceOfMeans(xa, xb, &share);
      declared =
          declared || (d.units >= 100 && std::abs(d.value) > SequenceHalfWidth(d, 0.05, 300));
      adjusted_declared = adjusted_declared ||
                          (x.units >= 100 && std::abs(x.value) > SequenceHalfWidth(x, 0.05, 300));
      wrongly = wrongly || (wrong.units >= 100 &&
                            std::abs(wrong.value) > SequenceHalfWidth(wrong, 0.05, 3000));
      if (i == 2999) kept += share / kRuns;
    }
    clustered += declared;
    naive += wrongly;
    adjusted += adjusted_declared;
  }
  EXPECT_LE(clustered, 50);
  EXPECT_LE(adjusted, 50);
  EXPECT_GT(naive, 200);
  EXPECT_LT(kept, 0.65);  // what is left is mostly the coin of each outcome
}

// By the product of predictive probabilities, unit by unit.
TEST(SampleRatio, IsTheProductOfPredictions) {
  const std::vector<double> weights = {2, 1, 1};
  const int split[] = {0, 0, 1, 2, 2, 2, 0, 1, 2, 2, 2, 2, 2, 2, 2, 2};
  std::vector<int64_t> counts(3);
  double bayes = 1;
  for (int arm : split) {
    double seen = 0;
    for (int64_t n : counts) seen += static_cast<double>(n);
    const double share = weights[arm] / 4;
    const double predicted =
        (kSampleRatioPrior * share + static_cast<double>(counts[arm])) / (kSampleRatioPrior + seen);
    bayes *= predicted / share;
    ++counts[arm];
    EXPECT_NEAR(SampleRatioP(counts, weights), std::min(1.0, 1 / bayes), 1e-9);
  }
}

// The smallest p over all times, of units that arrive in turn.
struct PeekedRatio {
  double valid = 1;
  double chi_square = 1;  // what a test for one look would have said
};
PeekedRatio PeekAtSplit(double share_of_b, uint64_t seed, int units) {
  PeekedRatio p;
  std::vector<int64_t> counts(2);
  for (int i = 0; i < units; ++i) {
    const bool in_b = RandomUniform({seed, static_cast<uint64_t>(i), 0, 0, 0}) < share_of_b;
    ++counts[in_b ? 1 : 0];
    p.valid = std::min(p.valid, SampleRatioP(counts, {1.0, 1.0}));
    const double half = (i + 1) / 2.0;
    const double off = static_cast<double>(counts[0]) - half;
    if (i >= 100) p.chi_square = std::min(p.chi_square, ChiSquareTail(2 * off * off / half, 1));
  }
  return p;
}
TEST(SampleRatio, ReadAfterEveryUnitAFairSplitAlarmsInFiveOfAHundredAtMost) {
  int valid = 0;
  int alarms = 0;
  int chi_square = 0;
  for (uint64_t run = 0; run < 1000; ++run) {
    const PeekedRatio p = PeekAtSplit(0.5, 300 + run, 5000);
    valid += p.valid <= 0.05;
    alarms += p.valid <= kSampleRatioAlarm;
    chi_square += p.chi_square <= 0.05;
  }
  EXPECT_LE(valid, 50);
  EXPECT_LE(alarms, 4);
  EXPECT_GT(chi_square, 200);  // for contrast
  RecordProperty("valid", valid);
  RecordProperty("alarms", alarms);
  RecordProperty("chi_square", chi_square);
}
TEST(SampleRatio, FiftyFiveToFortyFiveIsFound) {
  int found = 0;
  for (uint64_t run = 0; run < 200; ++run)
    found += PeekAtSplit(0.55, 7000 + run, 5000).valid <= kSampleRatioAlarm;
  EXPECT_GE(found, 196);
  RecordProperty("found", found);
}
TEST(SampleRatio, SaysWhatIsImpossible) {
  EXPECT_EQ(SampleRatioP({0, 0}, {1.0, 1.0}), 1);
  EXPECT_EQ(SampleRatioP({5}, {1.0}), 1);
  EXPECT_EQ(SampleRatioP({5, 1}, {1.0, 0.0}), 0);
  EXPECT_GT(SampleRatioP({500, 0, 520}, {1.0, 0.0, 1.0}), 0.5);
}

TEST(Sequential, SaysNothingWithoutData) {
  Moments a, b;
  const Difference d = DifferenceOfMeans(a, b);
  EXPECT_EQ(d.value, 0);
  EXPECT_EQ(SequenceHalfWidth(d, 0.05), INFINITY);
  MixtureTest test(0.1);
  EXPECT_EQ(test.Update(d), 1);
}
}  // namespace sequential_test
SLUICE_END_NAMESPACE
