#include "sluice/routers/attention/hip/hip.h"

#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace {
TEST(Hip, FindsASpikeAtAGroupCentre) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 1040, 16, 1, 1, 32, 32, 1);
  for (float& x : a.k) x *= 0.01f;
  // Sink 16, window 16: 1008 keys between, 16 groups of 63 units of one key; the centre of every
  // half on the way down.
  const int64_t sink = 16, units = 1040 - 16 + 1 - 16 - 16, group = 5, start = group * units / 16,
                len = (group + 1) * units / 16 - start;
  int64_t s = start, n = len;
  std::vector<int64_t> centres;
  while (n > 1) {
    n = (n + 1) / 2;
    centres.push_back(sink + s + n / 2);
  }
  for (int64_t centre : centres)
    for (int64_t x = 0; x < 32; ++x) a.k[centre * 32 + x] = a.q[x] * 2;
  const RoutedRun r =
      RunRouter("hip:mask_k=16,block_q=16,stride_q=1,block_k=1,sink=16,window=16", a);
  ASSERT_TRUE(r.status.ok()) << r.status;
  EXPECT_TRUE(std::binary_search(r.lists[0].begin(), r.lists[0].end(),
                                 static_cast<uint32_t>(centres.back())));
}
TEST(Hip, BudgetIsKept) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 2000, 64, 4, 2, 32, 32, 2);
  const RoutedRun r = RunRouter("hip:mask_k=64,sink=16,window=32", a);
  for (size_t i = 0; i < r.lists.size(); ++i) EXPECT_LE(r.lists[i].size(), 64u + 16 + 32 + 64 + 2);
}
}  // namespace
SLUICE_END_NAMESPACE
