#include "sluice/runtime/kernels/pool/pool.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/convert/convert.h"
#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/pool/pool_reference.h"
#include "sluice/tests/support/normal_values.h"
#include "sluice/tests/support/not_finite.h"

namespace sluice::kernels {
namespace pool_test {
using tests::kInf;
using tests::kNan;

TEST(Pool, EveryKindAndType) {
  ForEachTarget([&](const char* target) {
    for (int64_t d : {1, 16, 40, 64}) {
      for (int64_t n : {0, 1, 5, 64}) {
        const int64_t stride = d + 3;
        const std::vector<float> x = Normal(n * stride + 1, 6);
        for (DType t : {DType::kF32, DType::kBF16, DType::kF16}) {
          std::vector<uint32_t> raw(x.size());
          std::vector<float> back(x.size()), out(d);
          ConvertFromF32(x.data(), x.size(), t, raw.data());
          ConvertToF32(raw.data(), t, x.size(), back.data());
          for (PoolKind kind : {PoolKind::kMean, PoolKind::kMax, PoolKind::kMin}) {
            Pool(kind, raw.data(), t, stride, n, d, out.data());
            for (int64_t i = 0; i < d; ++i) {
              EXPECT_NEAR(
                  out[i],
                  PoolReference(
                      kind, [&](int64_t j, int64_t c) { return double{back[j * stride + c]}; }, n,
                      i),
                  1e-5)
                  << target;
            }
          }
        }
      }
    }
  });
}
TEST(Pool, OneNanMakesItsColumnNan) {
  constexpr int64_t kRows = 5;
  constexpr int64_t kWidth = 21;
  ForEachTarget([&](const char* target) {
    for (PoolKind kind : {PoolKind::kMean, PoolKind::kMax, PoolKind::kMin}) {
      for (int64_t row = 0; row < kRows; ++row) {
        for (int64_t column : {3, 20}) {
          std::vector<float> x = Normal(kRows * kWidth, 7);
          x[row * kWidth + column] = kNan;
          std::vector<float> out(kWidth);
          Pool(kind, x.data(), DType::kF32, kWidth, kRows, kWidth, out.data());
          for (int64_t i = 0; i < kWidth; ++i)
            EXPECT_EQ(std::isnan(out[i]), i == column) << target << " row " << row << " of " << i;
        }
      }
    }
  });
}
TEST(Pool, InfinitiesAreExtremes) {
  ForEachTarget([&](const char* target) {
    const std::vector<float> x = {1, -kInf, 2, kInf, 3, 0};
    std::vector<float> out(2);
    Pool(PoolKind::kMax, x.data(), DType::kF32, 2, 3, 2, out.data());
    EXPECT_EQ(out, (std::vector<float>{3, kInf})) << target;
    Pool(PoolKind::kMin, x.data(), DType::kF32, 2, 3, 2, out.data());
    EXPECT_EQ(out, (std::vector<float>{1, -kInf})) << target;
  });
}
}  // namespace pool_test
}  // namespace sluice::kernels
