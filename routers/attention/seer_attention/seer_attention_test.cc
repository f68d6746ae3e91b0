#include "sluice/routers/attention/seer_attention/seer_attention.h"

#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace {
TEST(SeerAttention, DensityRuleMeetsItsTarget) {
  // From 2x - x^2 = r over a causal triangle; at 512 blocks within half a percent of r.
  const int64_t blocks = 512;
  for (double r : {0.1, 0.2, 0.5, 1.0}) {
    const int64_t k = std::max<int64_t>(1, static_cast<int64_t>((1 - std::sqrt(1 - r)) * blocks));
    int64_t kept = 0;
    for (int64_t row = 1; row <= blocks; ++row) kept += std::min(row, k);
    EXPECT_NEAR(static_cast<double>(kept) / (blocks * (blocks + 1) / 2.0), r, 0.005);
  }
}
TEST(SeerAttention, NestedInTauAndDenseTail) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 512, 512, 4, 2, 32, 32, 1);
  const RoutedRun x = RunRouter("seer_attention:block=16,tau=0.04", a),
                  y = RunRouter("seer_attention:block=16,tau=0.02", a);
  for (size_t i = 0; i < x.lists.size(); ++i)
    EXPECT_TRUE(
        std::includes(y.lists[i].begin(), y.lists[i].end(), x.lists[i].begin(), x.lists[i].end()));
  EXPECT_LT(x.counters.exact_pairs, y.counters.exact_pairs);
  EXPECT_EQ(RunRouter("seer_attention:block=16,tau=0.9,dense_tail=2", a).lists.back().size(),
            512u);
}
TEST(SeerAttention, NeedsPreRopeInputs) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 64, 4, 2, 32, 32, 1);
  HarnessOptions o;
  o.adjust = [](SessionOptions&, AttentionInputs& in) { in.k_pre = {}; };
  EXPECT_EQ(RunRouter("seer_attention", a, o).status.code(),
            absl::StatusCode::kFailedPrecondition);
}
}  // namespace
SLUICE_END_NAMESPACE
