#include "sluice/runtime/kernels/rms_norm/rms_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/rms_norm/rms_norm_reference.h"
#include "sluice/tests/support/normal_values.h"

namespace sluice::kernels {
namespace rms_norm_test {
TEST(RmsNorm, Agrees) {
  ForEachTarget([&](const char* target) {
    for (int64_t n : {1, 15, 64, 100}) {
      const std::vector<float> x = Normal(n, 1), w = Normal(n, 2);
      std::vector<float> out(n);
      std::vector<double> want(n);
      RmsNorm(x.data(), w.data(), n, 1e-5f, out.data());
      RmsNormReference(x.data(), w.data(), n, 1e-5, want.data());
      for (int64_t i = 0; i < n; ++i) EXPECT_NEAR(out[i], want[i], 1e-5) << target;
    }
    RmsNorm(nullptr, nullptr, 0, 1e-5f, nullptr);
  });
}
}  // namespace rms_norm_test
}  // namespace sluice::kernels
