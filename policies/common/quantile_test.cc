#include "sluice/policies/common/quantile.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

SLUICE_BEGIN_NAMESPACE
namespace quantile_test {
TEST(Quantiles, AreTheTables) {
  EXPECT_NEAR(NormalQuantile(0.975), 1.959963984540054, 1e-14);
  EXPECT_NEAR(NormalQuantile(0.5), 0, 1e-15);
  EXPECT_NEAR(StudentQuantile(0.975, 1), 12.706204736, 1e-8);
  EXPECT_NEAR(StudentQuantile(0.975, 4), 2.776445105, 1e-8);
  EXPECT_NEAR(StudentQuantile(0.975, 19), 2.093024054, 1e-8);
}

TEST(Quantiles, ChiSquareTailsAreTheTables) {
  EXPECT_NEAR(ChiSquareTail(3.841458821, 1), 0.05, 1e-9);
  EXPECT_NEAR(ChiSquareTail(10.82756617, 1), 0.001, 1e-10);
  EXPECT_NEAR(ChiSquareTail(18.30703805, 10), 0.05, 1e-9);
  EXPECT_EQ(ChiSquareTail(0, 3), 1);
  EXPECT_EQ(ChiSquareTail(NAN, 3), 1);
}

TEST(StudentInterval, IsTheTextbookOne) {
  // Mean 3, variance 2.5, t(0.975, 4) = 2.776445105: half 2.776445105 * sqrt(0.5).
  const std::vector<double> x = {1, 2, 3, 4, 5};
  const MeanInterval m = StudentInterval(x);
  EXPECT_DOUBLE_EQ(m.value, 3);
  EXPECT_NEAR(m.high - m.value, 1.963243161, 1e-8);
  EXPECT_NEAR(m.value - m.low, 1.963243161, 1e-8);
  EXPECT_EQ(StudentInterval(absl::MakeConstSpan(x).first(1)).high, 1);
}
}  // namespace quantile_test
SLUICE_END_NAMESPACE
