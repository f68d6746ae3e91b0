#include "sluice/routers/attention/common/perm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

SLUICE_BEGIN_NAMESPACE
namespace attention {
namespace perm_test {
std::vector<uint32_t> Ordered(const std::vector<float>& score) {
  std::vector<uint32_t> order(score.size());
  OrderByScore(score.data(), static_cast<int64_t>(score.size()), order.data());
  return order;
}

TEST(OrderByScore, FallsAndTiesGoToTheLowerIndex) {
  EXPECT_THAT(Ordered({1, 3, 2, 3}), testing::ElementsAre(1, 3, 2, 0));
  EXPECT_THAT(Ordered({}), testing::IsEmpty());
}

TEST(OrderByScore, NanStandsLastAfterMinusInfinity) {
  EXPECT_THAT(Ordered({NAN, -INFINITY, 0, NAN, -INFINITY, INFINITY}),
              testing::ElementsAre(5, 2, 1, 4, 0, 3));
}
}  // namespace perm_test
}  // namespace attention
SLUICE_END_NAMESPACE
