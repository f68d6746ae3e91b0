#include "sluice/runtime/kernels/rope/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/rope/rope_reference.h"
#include "sluice/tests/support/normal_values.h"

namespace sluice::kernels {
namespace rope_test {
TEST(Rope, BothLayoutsAgree) {
  ForEachTarget([&](const char* target) {
    for (RopeLayout layout : {RopeLayout::kInterleaved, RopeLayout::kHalves}) {
      for (int64_t d : {2, 6, 32, 64, 72}) {
        for (double pos : {0.0, 1.0, 16383.0}) {
          std::vector<float> x = Normal(d, 5), c(d / 2), s(d / 2);
          std::vector<double> want(x.begin(), x.end());
          RopeAngles(pos, 1e5, d, c.data(), s.data());
          RopeRotate(x.data(), d, c.data(), s.data(), layout);
          RopeReference(want.data(), d, pos, 1e5, layout);
          for (int64_t i = 0; i < d; ++i) EXPECT_NEAR(x[i], want[i], 1e-5) << target;
        }
      }
    }
  });
}
}  // namespace rope_test
}  // namespace sluice::kernels
