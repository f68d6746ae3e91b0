#include "sluice/runtime/kernels/gather/gather.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/gather/gather_reference.h"
#include "sluice/tests/support/normal_values.h"

namespace sluice::kernels {
namespace gather_test {
TEST(Gather, RoundTripAndRepeats) {
  ForEachTarget([&](const char* target) {
    const int64_t width = 37, stride = 40;
    const std::vector<float> x = Normal(10 * stride, 7);
    const std::vector<int32_t> ids = {3, 3, 0, 9};
    std::vector<float> out(ids.size() * width), sum(10 * stride, 0.5f);
    GatherRows(x.data(), stride, ids.data(), ids.size(), width, out.data());
    for (int64_t j = 0; j < std::ssize(ids); ++j) {
      for (int64_t i = 0; i < width; ++i)
        EXPECT_EQ(out[j * width + i], x[static_cast<int64_t>(ids[j]) * stride + i]) << target;
    }
    const std::vector<float> w = {1, -2, 0.5f, 0};
    std::vector<double> want(10 * stride, 0.5);
    ScatterAddRows(out.data(), ids.data(), w.data(), ids.size(), width, sum.data(), stride);
    ScatterAddReference(out.data(), ids.data(), w.data(), ids.size(), width, want.data(), stride);
    for (int64_t i = 0; i < std::ssize(sum); ++i) EXPECT_NEAR(sum[i], want[i], 1e-5) << target;
    GatherRows(nullptr, 0, nullptr, 0, 5, nullptr);
  });
}
}  // namespace gather_test
}  // namespace sluice::kernels
