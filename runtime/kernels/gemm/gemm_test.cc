#include "sluice/runtime/kernels/gemm/gemm.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/gemm/gemm_reference.h"
#include "sluice/tests/support/normal_values.h"

namespace sluice::kernels {
namespace gemm_test {
TEST(GemmNT, AgreesOnRaggedShapes) {
  ForEachTarget([&](const char* target) {
    for (auto [m, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                           {6, 64, 64},
                           {7, 65, 63},
                           {70, 130, 17},
                           {0, 5, 4},
                           {3, 4, 0}}) {
      const std::vector<float> a = Normal(m * k + 1, 1), b = Normal(n * k + 1, 2);
      std::vector<float> c(m * n + 1), scratch(GemmScratchFloats(k));
      std::vector<double> want(m * n + 1);
      GemmNT(a.data(), k, b.data(), k, m, n, k, c.data(), n, scratch.data());
      GemmNTReference(a.data(), k, b.data(), k, m, n, k, want.data(), n);
      for (int64_t i = 0; i < m * n; ++i)
        EXPECT_NEAR(c[i], want[i], 1e-4) << target << " " << m << "x" << n << "x" << k;
    }
  });
}
}  // namespace gemm_test
}  // namespace sluice::kernels
