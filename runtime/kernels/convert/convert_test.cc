#include "sluice/runtime/kernels/convert/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "sluice/runtime/kernels/convert/convert_reference.h"
#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/tests/support/normal_values.h"

namespace sluice::kernels {
namespace {
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(Convert, SameBitsAsTheScalarDefinition) {
  std::vector<float> x = Normal(1000, 3);
  for (float e : {0.0f, -0.0f, kInf, -kInf, kNan, 65504.0f, 65520.0f, 1e-7f, 6e-8f, 1e-40f, 3.4e38f,
                  1.00048828125f})
    x.push_back(e);
  for (int64_t i = 0; i < 500; ++i) x.push_back(std::ldexp(x[i], static_cast<int>(i % 60) - 40));
  ForEachTarget([&](const char* target) {
    std::vector<uint16_t> out(x.size());
    ConvertFromF32(x.data(), x.size(), DType::kBF16, out.data());
    for (int64_t i = 0; i < std::ssize(x); ++i)
      EXPECT_EQ(out[i], F32ToBF16(x[i])) << target << " " << x[i];
    std::vector<float> back(x.size());
    ConvertToF32(out.data(), DType::kBF16, x.size(), back.data());
    for (int64_t i = 0; i < std::ssize(x); ++i)
      EXPECT_EQ(F32ToBits(back[i]), F32ToBits(BF16ToF32(out[i]))) << target;
    ConvertFromF32(x.data(), x.size(), DType::kF16, out.data());
    for (int64_t i = 0; i < std::ssize(x); ++i) {
      if (std::isnan(x[i])) {
        EXPECT_TRUE(std::isnan(F16ToF32(out[i]))) << target;
      } else {
        EXPECT_EQ(out[i], F32ToF16(x[i])) << target << " " << x[i];
      }
    }
    ConvertToF32(out.data(), DType::kF16, x.size(), back.data());
    for (int64_t i = 0; i < std::ssize(x); ++i) {
      if (!std::isnan(x[i])) {
        EXPECT_EQ(back[i], F16ToF32(out[i])) << target << " " << x[i];
      }
    }
  });
}
}  // namespace
}  // namespace sluice::kernels
