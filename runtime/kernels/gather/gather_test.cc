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
TEST(Gather, AddingRowsAtOnceIsAddingThemInTurn) {
  ForEachTarget([&](const char* target) {
    for (int64_t width : {1, 3, 16, 63, 64, 101, 256}) {
      const std::vector<float> rows = Normal(12 * width, 1);
      const std::vector<int64_t> slots = {7, 0, 11, 11, 3};
      const std::vector<float> weight = Normal(std::ssize(slots), 2);
      for (int64_t n = 0; n <= std::ssize(slots); ++n) {
        std::vector<float> sum = Normal(width, 3);
        std::vector<float> want = sum;
        AddRows(rows.data(), slots.data(), weight.data(), n, width, sum.data());
        for (int64_t j = 0; j < n; ++j) {
          constexpr int32_t kRow = 0;
          ScatterAddRows(&rows[slots[j] * width], &kRow, &weight[j], 1, width, want.data(), width);
        }
        EXPECT_EQ(sum, want) << target << " " << width << " " << n;
      }
    }
  });
}
}  // namespace gather_test
}  // namespace sluice::kernels
