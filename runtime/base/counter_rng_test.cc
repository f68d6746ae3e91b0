#include "sluice/runtime/base/counter_rng.h"

#include <gtest/gtest.h>

SLUICE_BEGIN_NAMESPACE
namespace counter_rng_test {
TEST(CounterRng, PureAndWellSpread) {
  EXPECT_EQ(RandomBits({1, 2, 3, 4, 5}), RandomBits({1, 2, 3, 4, 5}));
  EXPECT_NE(RandomBits({1, 2, 3, 4, 5}), RandomBits({1, 2, 3, 5, 4}));
  double sum = 0, normal = 0, square = 0;
  const int n = 20000;
  for (uint64_t i = 0; i < n; ++i) {
    const double u = RandomUniform({7, 0, 0, 0, i}), z = RandomNormal({7, 1, 0, 0, i});
    EXPECT_GE(u, 0);
    EXPECT_LT(u, 1);
    sum += u;
    normal += z;
    square += z * z;
  }
  EXPECT_NEAR(sum / n, 0.5, 0.01);
  EXPECT_NEAR(normal / n, 0, 0.03);
  EXPECT_NEAR(square / n, 1, 0.04);
}
}  // namespace counter_rng_test
SLUICE_END_NAMESPACE
