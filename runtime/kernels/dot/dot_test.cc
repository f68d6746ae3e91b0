#include "sluice/runtime/kernels/dot/dot.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/convert/convert.h"
#include "sluice/runtime/kernels/dot/dot_reference.h"
#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/tests/support/normal_values.h"

namespace sluice::kernels {
namespace dot_test {
TEST(Dot, EveryTypeAndLength) {
  ForEachTarget([&](const char* target) {
    for (int64_t n : {0, 1, 7, 16, 63, 64, 65, 200}) {
      const std::vector<float> a = Normal(n, 1), b = Normal(n, 2);
      for (DType t : {DType::kF32, DType::kBF16, DType::kF16}) {
        std::vector<uint32_t> raw(n + 1);
        ConvertFromF32(b.data(), n, t, raw.data());
        std::vector<float> back(n);
        ConvertToF32(raw.data(), t, n, back.data());
        EXPECT_NEAR(Dot(a.data(), raw.data(), t, n),
                    DotReference(
                        a.data(), [&](int64_t i) { return back[i]; }, n),
                    1e-4)
            << target << " " << n;
      }
      std::vector<int8_t> i8(n + 1);
      for (int64_t i = 0; i < n; ++i) i8[i] = static_cast<int8_t>(i * 7 - 50);
      EXPECT_NEAR(Dot(a.data(), i8.data(), DType::kI8, n),
                  DotReference(
                      a.data(), [&](int64_t i) { return double{i8[i] * 1.0}; }, n),
                  1e-2)
          << target;
    }
  });
}
}  // namespace dot_test
}  // namespace sluice::kernels
