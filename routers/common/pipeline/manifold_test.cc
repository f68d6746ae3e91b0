#include "sluice/routers/common/pipeline/manifold.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

SLUICE_BEGIN_NAMESPACE
namespace pipeline {
namespace manifold_test {
using testing::HasSubstr;
using Vector = std::vector<double>;

// n rows in `rank` directions of d, the i-th i + 1 times as long as the last.
Snapshots OfRank(int64_t n, int64_t d, int64_t rank, uint64_t seed) {
  const Snapshots directions = RandomBasis(rank, d, seed);
  Snapshots rows(static_cast<size_t>(n), Vector(static_cast<size_t>(d), 3.0));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t r = 0; r < rank; ++r) {
      const double along =
          RandomNormal({seed, 9, 0, static_cast<uint64_t>(i), static_cast<uint64_t>(r)});
      for (int64_t x = 0; x < d; ++x)
        rows[i][x] += static_cast<double>(rank - r) * along * directions[r][x];
    }
  }
  return rows;
}

TEST(Manifold, VariancesAreThoseOfTheDirections) {
  // Four points on two axes about (5, -1): variances 2^2 / 2 and 1 / 2.
  const Snapshots cross = {{7, -1, 0}, {3, -1, 0}, {5, 0, 0}, {5, -2, 0}};
  const auto v = PrincipalVariances(cross);
  ASSERT_TRUE(v.ok()) << v.status();
  ASSERT_EQ(v->size(), 4u);
  EXPECT_NEAR((*v)[0], 2, 1e-12);
  EXPECT_NEAR((*v)[1], 0.5, 1e-12);
  EXPECT_NEAR((*v)[2], 0, 1e-12);
  EXPECT_EQ(DirectionsFor(*v, 0.8), 1);
  EXPECT_EQ(DirectionsFor(*v, 0.81), 2);
  EXPECT_EQ(DirectionsFor(*v, 1), 2);
  // Singular values 2 : 1.
  EXPECT_NEAR(EffectiveRank(*v), std::exp(-(2.0 / 3) * std::log(2.0 / 3) - std::log(1.0 / 3) / 3),
              1e-9);
}
TEST(Manifold, VariancesAddUpToThatOfAllElements) {
  for (int64_t rank : {1, 3, 7}) {
    const Snapshots rows = OfRank(12, 30, rank, 5);
    const auto v = PrincipalVariances(rows);
    ASSERT_TRUE(v.ok());
    double sum = 0;
    for (double x : *v) sum += x;
    double all = 0;
    for (size_t x = 0; x < 30; ++x) {
      double mean = 0;
      for (const Vector& r : rows) mean += r[x] / 12;
      for (const Vector& r : rows) all += (r[x] - mean) * (r[x] - mean) / 12;
    }
    EXPECT_NEAR(sum, all, 1e-9 * all);
    EXPECT_LE(DirectionsFor(*v, 0.9), rank);
    EXPECT_LE(DirectionsFor(*v, 0.999999), rank);
    EXPECT_LE(EffectiveRank(*v), static_cast<double>(rank) + 1e-3);
  }
}
TEST(Manifold, RotationAndOrderChangeNothing) {
  const Snapshots rows = OfRank(9, 12, 4, 3);
  const Snapshots turn = RandomBasis(12, 12, 8);
  ASSERT_EQ(turn.size(), 12u);
  Snapshots turned;
  for (const Vector& r : rows) {
    Vector& to = turned.emplace_back();
    for (const Vector& b : turn) to.push_back(manifold_internal::Product(r, b));
  }
  std::swap(turned[0], turned[5]);
  const auto a = PrincipalVariances(rows);
  const auto b = PrincipalVariances(turned);
  ASSERT_TRUE(a.ok() && b.ok());
  for (size_t i = 0; i < a->size(); ++i) EXPECT_NEAR((*a)[i], (*b)[i], 1e-9);
}
TEST(Manifold, AWalkLooksLowRankToo) {
  const Snapshots drawn = RandomBasis(1, 200, 4);
  Snapshots like(60, drawn[0]);
  for (size_t i = 1; i < like.size(); ++i) like[i][i] += static_cast<double>(i);
  const Snapshots walk = RandomWalk(like, 2);
  ASSERT_EQ(walk.size(), like.size());
  for (size_t i = 1; i < walk.size(); ++i) {
    Vector a = walk[i];
    Vector b = like[i];
    manifold_internal::AddTimes(-1, walk[i - 1], a);
    manifold_internal::AddTimes(-1, like[i - 1], b);
    EXPECT_NEAR(manifold_internal::Product(a, a), manifold_internal::Product(b, b), 1e-6);
  }
  EXPECT_LT(DirectionsFor(*PrincipalVariances(walk), 0.9), 20);
}
TEST(Manifold, SharesInsideABasis) {
  const Snapshots all = RandomBasis(6, 6, 1);
  const Vector x = {1, -2, 3, 0.5, 0, 9};
  EXPECT_NEAR(ShareInside(all, x), 1, 1e-12);
  EXPECT_EQ(ShareInside({}, x), 0);
  EXPECT_EQ(ShareInside(all, Vector(6)), 0);
  EXPECT_NEAR(ShareInside({{0, 0, 0, 0, 0, 1}}, {3, 0, 0, 0, 0, 4}), 0.8, 1e-12);
  // Vectors that add nothing are left out.
  EXPECT_EQ(Orthonormal({{1, 0}, {2, 0}, {0, 0}, {1, 1}}).size(), 2u);
  double mean = 0;
  for (uint64_t s = 0; s < 200; ++s) {
    const double share = ShareInside(RandomBasis(4, 100, s), RandomBasis(1, 100, 1000 + s)[0]);
    mean += share / 200;
  }
  EXPECT_NEAR(mean, std::sqrt(0.04), 0.02);
}
// Quadratic losses (w - m)^T H (w - m) / 2: apart = rate^2 (H_b g_a - H_a g_b).
TEST(Manifold, StepsOfQuadraticLossesDoNotCommuteByTheirCurvature) {
  const auto times = [](const Snapshots& h, const Vector& x) {
    Vector y;
    for (const Vector& row : h) y.push_back(manifold_internal::Product(row, x));
    return y;
  };
  const Snapshots ha = {{2, 1, 0}, {1, 3, 0}, {0, 0, 1}};
  const Snapshots hb = {{1, 0, 2}, {0, 1, 0}, {2, 0, 5}};
  const auto gradient = [&](const Snapshots& h, const Vector& m) {
    return [=](const Vector& at) {
      Vector off = at;
      manifold_internal::AddTimes(-1, m, off);
      return times(h, off);
    };
  };
  const Gradient a = gradient(ha, {1, 0, 0});
  const Gradient b = gradient(hb, {0, -1, 2});
  const Vector at = {0.5, 2, -1};
  const double rate = 0.1;
  const Commutator c = Commute(at, rate, a, b);
  Vector want = times(hb, a(at));
  manifold_internal::AddTimes(-1, times(ha, b(at)), want);
  for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(c.apart[i], rate * rate * want[i], 1e-12);
  const double size =
      std::sqrt(manifold_internal::Product(want, want) / manifold_internal::Product(a(at), a(at)) /
                manifold_internal::Product(b(at), b(at)));
  EXPECT_NEAR(c.defect, size, 1e-9);

  // Curvatures that commute, and one minimum: nothing is left. With two minima something is.
  const Snapshots da = {{2, 0, 0}, {0, 3, 0}, {0, 0, 1}};
  const Snapshots db = {{1, 0, 0}, {0, 5, 0}, {0, 0, 2}};
  const Vector m = {1, 1, 1};
  EXPECT_NEAR(Commute(at, rate, gradient(da, m), gradient(db, m)).defect, 0, 1e-12);
  EXPECT_GT(Commute(at, rate, gradient(da, m), gradient(db, {0, 0, 0})).defect, 1e-3);
  EXPECT_EQ(Commute(m, rate, gradient(da, m), gradient(db, m)).defect, 0);
}
TEST(Manifold, AttentionRows) {
  EXPECT_NEAR(RowEntropy(std::vector<float>(16, 1.0f / 16)), std::log(16.0), 1e-6);
  EXPECT_EQ(RowEntropy(std::vector<float>{0, 1, 0}), 0);
  EXPECT_EQ(RowEntropy({}), 0);
  const std::vector<float> row = {0.1f, 0.5f, 0.15f, 0.25f};
  EXPECT_NEAR(LargestMass(row, 2), 0.75, 1e-6);
  EXPECT_NEAR(LargestMass(row, 9), 1, 1e-6);
  EXPECT_EQ(LargestMass(row, 0), 0);
}
TEST(Manifold, WhatCannotBeMeasuredIsSaid) {
  EXPECT_THAT(std::string(PrincipalVariances({}).status().message()), HasSubstr("no snapshots"));
  EXPECT_THAT(std::string(PrincipalVariances({{1, 2}, {1}}).status().message()),
              HasSubstr("2 and 1 numbers"));
  EXPECT_THAT(std::string(PrincipalVariances({{1, NAN}}).status().message()), HasSubstr("nan"));
  const auto one = PrincipalVariances({{1, 2, 3}});
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(DirectionsFor(*one, 0.9), 0);
  EXPECT_EQ(EffectiveRank(*one), 0);
}
}  // namespace manifold_test
}  // namespace pipeline
SLUICE_END_NAMESPACE
