#include "sluice/routers/attention/dense/dense.h"

#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace {
std::unique_ptr<const AttentionRouter> Make(const std::string& spec) {
  auto r = BuiltinRouters().attention.Create(spec);
  EXPECT_TRUE(r.ok()) << r.status();
  return std::move(*r);
}
TEST(Dense, TileHeightDoesNotChangeBits) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 200, 4, 2, 32, 32, 1);
  EXPECT_EQ(RunRouter(*Make("dense:tile=64"), a).o, RunRouter(*Make("dense:tile=7"), a).o);
}
}  // namespace
SLUICE_END_NAMESPACE
