#include "sluice/runtime/kernels/layer_norm/layer_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/layer_norm/layer_norm_reference.h"
#include "sluice/tests/support/normal_values.h"

namespace sluice::kernels {
namespace layer_norm_test {
TEST(LayerNorm, Agrees) {
  ForEachTarget([&](const char* target) {
    for (int64_t n : {1, 15, 64, 100, 192}) {
      std::vector<float> x = Normal(n, 1);
      const std::vector<float> w = Normal(n, 2), b = Normal(n, 3);
      for (float& v : x) v = 3 * v + 5;
      std::vector<double> want(n);
      LayerNormReference(x.data(), w.data(), b.data(), n, 1e-5, want.data());
      LayerNorm(x.data(), w.data(), b.data(), n, 1e-5f, x.data());  // in place
      for (int64_t i = 0; i < n; ++i) EXPECT_NEAR(x[i], want[i], 2e-5) << target;
    }
    LayerNorm(nullptr, nullptr, nullptr, 0, 1e-5f, nullptr);
  });
}
}  // namespace layer_norm_test
}  // namespace sluice::kernels
