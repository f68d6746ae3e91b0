#include "sluice/runtime/kernels/index_score/index_score.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/index_score/index_score_reference.h"
#include "sluice/tests/support/normal_values.h"
#include "sluice/tests/support/not_finite.h"

namespace sluice::kernels {
namespace index_score_test {
using tests::kInf;
using tests::kNan;

TEST(IndexScore, ContiguousAndGathered) {
  ForEachTarget([&](const char* target) {
    for (int64_t heads : {1, 2, 64}) {
      const int64_t dim = 40, n = 150;
      const std::vector<float> q = Normal(heads * dim, 1), w = Normal(heads, 2),
                               k = Normal(n * dim, 3);
      std::vector<float> s(n), scratch(IndexScratchFloats(heads, dim));
      IndexScore(q.data(), w.data(), heads, dim, k.data(), DType::kF32, dim * 4, nullptr, n,
                 s.data(), scratch.data());
      for (int64_t i = 0; i < n; ++i)
        EXPECT_NEAR(s[i], IndexScoreReference(q.data(), w.data(), heads, dim, &k[i * dim]), 2e-3)
            << target;
      const std::vector<uint32_t> ids = {5, 149, 0};
      std::vector<float> g(3);
      IndexScore(q.data(), w.data(), heads, dim, k.data(), DType::kF32, dim * 4, ids.data(), 3,
                 g.data(), scratch.data());
      for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(g[i], s[ids[i]]) << target;
    }
  });
}
// ReLU of NaN is NaN: a score of 0 would be as good as any other.
TEST(IndexScore, NanComesOut) {
  ForEachTarget([&](const char* target) {
    const int64_t heads = 3;
    const int64_t dim = 16;
    const int64_t n = 70;
    const std::vector<float> q = Normal(heads * dim, 1);
    std::vector<float> k = Normal(n * dim, 3);
    k[5 * dim + 2] = kNan;
    k[68 * dim] = kNan;
    k[9 * dim + 1] = kInf;
    const std::vector<float> w = {1, -2, 0.5};
    std::vector<float> s(n);
    std::vector<float> scratch(IndexScratchFloats(heads, dim));
    IndexScore(q.data(), w.data(), heads, dim, k.data(), DType::kF32, dim * 4, nullptr, n, s.data(),
               scratch.data());
    for (int64_t i = 0; i < n; ++i) {
      const double want = IndexScoreReference(q.data(), w.data(), heads, dim, &k[i * dim]);
      EXPECT_EQ(std::isnan(s[i]), std::isnan(want)) << target << " " << i;
      if (std::isinf(want)) {
        EXPECT_EQ(s[i], want) << target;
      }
    }
  });
}
}  // namespace index_score_test
}  // namespace sluice::kernels
