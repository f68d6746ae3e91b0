#include "sluice/runtime/kernels/convert/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "sluice/runtime/kernels/convert/convert_reference.h"
#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/tests/support/normal_values.h"
#include "sluice/tests/support/not_finite.h"

namespace sluice::kernels {
namespace convert_test {
using tests::kInf;
using tests::kNan;

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
// Blocks written here byte by byte: a scale of 0.5, then of 2.
TEST(Convert, ReadsBlocksOfEight) {
  std::vector<uint8_t> row(2 * kQ8BlockBytes);
  std::vector<float> want;
  const uint16_t scales[] = {0x3800, 0x4000};
  for (int b = 0; b < 2; ++b) {
    std::memcpy(&row[b * kQ8BlockBytes], &scales[b], 2);
    for (int i = 0; i < 32; ++i) {
      const int value = (i * 37 + b * 11) % 256 - 128;
      row[b * kQ8BlockBytes + 2 + i] = static_cast<uint8_t>(static_cast<int8_t>(value));
      want.push_back(static_cast<float>(value) * (b == 0 ? 0.5f : 2.0f));
    }
  }
  EXPECT_EQ(DTypeBytes(DType::kQ8_0, 64), std::ssize(row));
  ForEachTarget([&](const char* target) {
    std::vector<float> got(64);
    ConvertToF32(row.data(), DType::kQ8_0, 64, got.data());
    EXPECT_EQ(got, want) << target;
  });
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(Q8ToF32(row.data(), i), want[i]);
}
TEST(Convert, ReadsBlocksOfFour) {
  std::vector<uint8_t> row(2 * kQ4BlockBytes);
  std::vector<float> want(64);
  const uint16_t scales[] = {0x3800, 0x4000};
  for (int b = 0; b < 2; ++b) {
    std::memcpy(&row[b * kQ4BlockBytes], &scales[b], 2);
    for (int i = 0; i < 16; ++i) {
      const int low = (i + b) % 16;
      const int high = (i * 7 + 3) % 16;
      row[b * kQ4BlockBytes + 2 + i] = static_cast<uint8_t>(low | high << 4);
      want[b * 32 + i] = static_cast<float>(low - 8) * (b == 0 ? 0.5f : 2.0f);
      want[b * 32 + 16 + i] = static_cast<float>(high - 8) * (b == 0 ? 0.5f : 2.0f);
    }
  }
  EXPECT_EQ(DTypeBytes(DType::kQ4_0, 64), std::ssize(row));
  ForEachTarget([&](const char* target) {
    std::vector<float> got(64);
    ConvertToF32(row.data(), DType::kQ4_0, 64, got.data());
    EXPECT_EQ(got, want) << target;
  });
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(Q4ToF32(row.data(), i), want[i]);
}
}  // namespace convert_test
}  // namespace sluice::kernels
