#include "sluice/routers/attention/hisa/hisa.h"

#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
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
double MeanIoU(const RoutedRun& x, const RoutedRun& y) {
  double sum = 0;
  for (size_t i = 0; i < x.lists.size(); ++i) sum += IoU(x.lists[i], y.lists[i]);
  return sum / static_cast<double>(x.lists.size());
}
TEST(Hisa, EqualsDsaWhenEveryBlockIsKeptAndImprovesWithM) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 256, 60, 4, 2, 32, 32, 1);
  for (bool trained : {false, true}) {
    IndexData index;
    HarnessOptions o;
    if (trained)
      o.adjust = [&](SessionOptions& s, AttentionInputs& in) { index.Attach(s, in, 8, 16); };
    const RoutedRun dsa = RunRouter("dsa:k=16", a, o);
    EXPECT_EQ(RunRouter("hisa:k=16,m=16,block=16", a, o).lists, dsa.lists);
    double last = 0;
    for (const char* m : {"2", "4", "8", "12"}) {
      const RoutedRun h = RunRouter(absl::StrCat("hisa:k=16,block=16,m=", m), a, o);
      ASSERT_TRUE(h.status.ok());
      const double iou = MeanIoU(h, dsa);
      EXPECT_GE(iou, last - 0.02);
      last = iou;
    }
    EXPECT_GT(last, 0.6);
  }
}
TEST(Hisa, PlantedStructureIsFound) {
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 2048, 64, 4, 2, 32, 32, 2);
  const RoutedRun dsa = RunRouter("dsa:k=128", a),
                  hisa = RunRouter("hisa:k=128,m=8,block=128", a);
  EXPECT_GT(MeanIoU(hisa, dsa), 0.9);
}
TEST(Hisa, RejectsABudgetTheBlocksCannotHold) {
  EXPECT_FALSE(BuiltinRouters().attention.Create("hisa:k=2048,m=16,block=128").ok());
}
}  // namespace
SLUICE_END_NAMESPACE
