#include "sluice/routers/attention/dense/dense.h"

#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace dense_test {
TEST(Dense, TileHeightDoesNotChangeBits) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 200, 4, 2, 32, 32, 1);
  EXPECT_EQ(RunRouter("dense:tile=64", a).o, RunRouter("dense:tile=7", a).o);
}
}  // namespace dense_test
SLUICE_END_NAMESPACE
