#include "sluice/runtime/kernels/gelu/gelu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/gelu/gelu_reference.h"
#include "sluice/tests/support/normal_values.h"
#include "sluice/tests/support/not_finite.h"

namespace sluice::kernels {
namespace gelu_test {
using tests::kNan;

TEST(BiasGelu, Agrees) {
  ForEachTarget([&](const char* target) {
    for (int64_t n : {1, 15, 64, 100}) {
      std::vector<float> x = Normal(n, 1);
      const std::vector<float> b = Normal(n, 2);
      for (float& v : x) v *= 4;
      std::vector<double> want(n);
      for (int64_t i = 0; i < n; ++i)
        want[i] = GeluReference(static_cast<double>(x[i]) + static_cast<double>(b[i]));
      BiasGelu(x.data(), b.data(), n, x.data());
      for (int64_t i = 0; i < n; ++i)
        EXPECT_NEAR(x[i], want[i], 2e-6 * (1 + std::abs(want[i]))) << target;
    }
    float odd[3] = {kNan, 1e30f, -1e30f};
    const float zero[3] = {};
    BiasGelu(odd, zero, 3, odd);
    EXPECT_TRUE(std::isnan(odd[0])) << target;
    EXPECT_EQ(odd[1], 1e30f);
    EXPECT_EQ(odd[2], 0.0f);
    BiasGelu(nullptr, nullptr, 0, nullptr);
  });
}
}  // namespace gelu_test
}  // namespace sluice::kernels
