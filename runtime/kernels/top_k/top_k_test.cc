#include "sluice/runtime/kernels/top_k/top_k.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/top_k/top_k_reference.h"
#include "sluice/tests/support/normal_values.h"
#include "sluice/tests/support/not_finite.h"

namespace sluice::kernels {
namespace top_k_test {
using tests::kInf;
using tests::kNan;

TEST(TopK, SameSetAsASort) {
  ForEachTarget([&](const char* target) {
    for (int64_t n : {0, 1, 5, 64, 1000, 4096, 5000, 70000}) {
      for (int kind = 0; kind < 6; ++kind) {
        std::vector<float> x = Normal(n, static_cast<unsigned>(kind));
        for (int64_t i = 0; i < n; ++i) {
          if (kind == 1) x[i] = std::round(x[i]);       // many ties, both zeros
          if (kind == 2) x[i] = 1.0f;                   // all equal
          if (kind == 3) x[i] = static_cast<float>(i);  // sorted
          if (kind == 4 && i % 3 == 0) x[i] = i % 2 ? kNan : -kInf;
          if (kind == 5)
            x[i] = i % 128 == 0 ? 1e30f : x[i] * 1e-30f;  // the strided sample sees only outliers
        }
        uint32_t nans = 0;
        for (float e : x) nans += e != e;
        for (int64_t k : {int64_t{0}, int64_t{1}, int64_t{3}, n / 32, n / 2, n, n + 5}) {
          std::vector<uint32_t> out(k + 1);
          std::vector<char> scratch(TopKScratchBytes(n));
          const TopKCount c = TopK(x.data(), n, k, out.data(), scratch.data());
          out.resize(c.count);
          EXPECT_EQ(out, TopKReference(x.data(), n, k))
              << target << " n=" << n << " k=" << k << " kind=" << kind;
          EXPECT_EQ(c.nans, nans) << target;
        }
      }
    }
  });
}
// Every length that is searched by bisection and some beyond, no room but what is asked for.
TEST(TopK, SameSetAsASortOfFewScores) {
  ForEachTarget([&](const char* target) {
    for (int64_t n = 1; n <= 270; n += n < 70 ? 1 : 9) {
      for (int kind = 0; kind < 5; ++kind) {
        std::vector<float> x = Normal(n, static_cast<unsigned>(10 * n + kind));
        for (int64_t i = 0; i < n; ++i) {
          if (kind == 1) x[i] = std::round(x[i]);                          // ties, both zeros
          if (kind == 2) x[i] = BitsToF32(0x3F800000u + (i * 7 % n) / 2);  // neighbours, in pairs
          if (kind == 3 && i % 4 == 1) x[i] = i % 8 == 1 ? kNan : i % 3 == 0 ? kInf : -kInf;
          if (kind == 4) x[i] = x[i] < 0 ? -kInf : std::exp(9 * x[i]) * 1e-30f;
        }
        for (int64_t k : {int64_t{1}, int64_t{2}, int64_t{8}, n / 2 + 1, n - 1, n}) {
          std::vector<uint32_t> out(k, 12345);
          std::vector<char> scratch(TopKScratchBytes(n));
          const TopKCount c = TopK(x.data(), n, k, out.data(), scratch.data());
          out.resize(c.count);
          EXPECT_EQ(out, TopKReference(x.data(), n, k))
              << target << " n=" << n << " k=" << k << " kind=" << kind;
        }
      }
    }
  });
}
TEST(TopK, OneMillion) {
  const int64_t n = 1 << 20, k = 2048;
  const std::vector<float> x = Normal(n, 11);
  std::vector<uint32_t> out(k);
  std::vector<char> scratch(TopKScratchBytes(n));
  EXPECT_EQ(TopK(x.data(), n, k, out.data(), scratch.data()).count, k);
  EXPECT_EQ(out, TopKReference(x.data(), n, k));
}
}  // namespace top_k_test
}  // namespace sluice::kernels
