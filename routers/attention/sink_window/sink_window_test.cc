#include "sluice/routers/attention/sink_window/sink_window.h"

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
TEST(SinkWindow, ListsAreExactlySinkAndWindow) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 130, 2, 1, 32, 32, 1);
  const RoutedRun r = RunRouter(*Make("sink_window:sink=5,window=20"), a);
  for (int64_t i = 0; i < 130; ++i) {
    const int64_t t = 70 + i;
    std::vector<uint32_t> want;
    for (int64_t s = 0; s <= t; ++s) {
      if (s < 5 || s > t - 20) want.push_back(static_cast<uint32_t>(s));
    }
    EXPECT_EQ(r.lists[static_cast<size_t>(i * 2)], want);
  }
}
}  // namespace
SLUICE_END_NAMESPACE
