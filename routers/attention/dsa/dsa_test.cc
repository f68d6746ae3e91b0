#include "sluice/routers/attention/dsa/dsa.h"

#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/runtime/kernels/index_score/index_score_reference.h"
#include "sluice/runtime/kernels/top_k/top_k_reference.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace {
// A random indexer over the data: queries, signed weights and keys of its own.
struct IndexData {
  std::vector<float> q, w, k;
  void Attach(SessionOptions& s, AttentionInputs& in, int64_t heads, int64_t dim) {
    const auto fill = [&](std::vector<float>& x, int64_t n, uint64_t unit) {
      for (int64_t i = 0; i < n; ++i)
        x.push_back(static_cast<float>(RandomNormal({5, 0, 0, unit, static_cast<uint64_t>(i)})));
    };
    if (q.empty()) {
      fill(q, in.q.rows * heads * dim, 1);
      fill(w, in.q.rows * heads, 2);
      fill(k, in.k.rows * dim, 3);
    }
    s.index_heads = static_cast<int>(heads);
    s.index_dim = static_cast<int>(dim);
    in.index.q = {q.data(), in.q.rows, heads, dim, heads * dim, dim};
    in.index.weight = {w.data(), in.q.rows, heads, heads};
    in.index.k = {k.data(), DType::kF32, in.k.rows, 1, dim, dim, dim};
  }
};
TEST(Dsa, ListIsTheSortedTopKOfTheReference) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 40, 4, 2, 32, 32, 1);
  IndexData index;
  HarnessOptions o;
  o.adjust = [&](SessionOptions& s, AttentionInputs& in) { index.Attach(s, in, 8, 16); };
  const RoutedRun r = RunRouter("dsa:k=50", a, o);
  ASSERT_TRUE(r.status.ok()) << r.status;
  for (int64_t i = 0; i < 40; ++i) {
    std::vector<float> score;
    for (int64_t s = 0; s <= 260 + i; ++s)
      score.push_back(static_cast<float>(kernels::IndexScoreReference(
          &index.q[i * 128], &index.w[i * 8], 8, 16, &index.k[s * 16])));
    EXPECT_GE(IoU(r.lists[i * 4], kernels::TopKReference(score.data(), score.size(), 50)),
              0.96);                                // rounding may swap the last
    EXPECT_EQ(r.lists[i * 4], r.lists[i * 4 + 3]);  // shared by all heads
  }
}
TEST(Dsa, ScalingTheWeightsOfATokenChangesNothing) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 40, 4, 2, 32, 32, 1);
  IndexData index;
  HarnessOptions o;
  o.adjust = [&](SessionOptions& s, AttentionInputs& in) { index.Attach(s, in, 8, 16); };
  const RoutedRun before = RunRouter("dsa:k=50", a, o);
  for (float& w : index.w) w *= 4;
  EXPECT_EQ(RunRouter("dsa:k=50", a, o).lists, before.lists);
  o.adjust = [&](SessionOptions& s, AttentionInputs& in) {
    index.Attach(s, in, 8, 16);
    in.index.k.dim = 15;
  };
  EXPECT_FALSE(RunRouter("dsa:k=50", a, o).status.ok());
}
}  // namespace
SLUICE_END_NAMESPACE
