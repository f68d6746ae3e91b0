#include "sluice/runtime/kernels/int_score/int_score.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/int_score/int_score_reference.h"
#include "sluice/tests/support/normal_values.h"
#include "sluice/tests/support/not_finite.h"

namespace sluice::kernels {
namespace int_score_test {
using tests::kInf;
using tests::kNan;

// Rows of whole numbers as they are, and packed.
struct Rows {
  Rows(KeyBits key_bits, int64_t rows, int64_t keys, int64_t width, unsigned seed)
      : bits(key_bits), n(keys), dim(width), padded(rows * IntWidth(bits, dim)) {
    std::mt19937 g(seed);
    const auto draw = [&](int32_t limit) {
      return static_cast<int8_t>(std::uniform_int_distribution<int>(-limit, limit)(g));
    };
    for (int64_t i = 0; i < rows * dim; ++i) q.push_back(draw(127));
    for (int64_t i = 0; i < n * dim; ++i) k.push_back(draw(IntLimit(bits)));
    // The largest products of either sign.
    std::fill_n(q.begin(), dim, int8_t{-127});
    std::fill_n(k.begin(), dim, static_cast<int8_t>(IntLimit(bits)));
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(&q[r * dim], dim, &padded[r * IntWidth(bits, dim)]);
    packed.resize(IntKeyBytes(bits, n, dim), 0xA5);  // keys that are not there are not read
    for (int64_t s = 0; s < n; ++s) PackIntKey(bits, &k[s * dim], dim, s, packed.data());
  }
  KeyBits bits;
  int64_t n, dim;
  std::vector<int8_t> q, k, padded;
  std::vector<uint8_t> packed;
};

// Runs the body on every unit that this CPU has.
template <class Body>
void OnEveryUnit(Body&& body) {
  ForEachTarget([&](const char* target) { body(*int_internal::Portable(), target); });
  if (const IntProducts* vnni = int_internal::Avx512Vnni(); vnni != nullptr) body(*vnni, "VNNI");
}
constexpr int64_t kDims[] = {1, 4, 13, 24, 64, 128};

TEST(IntScore, DotsAreExact) {
  for (KeyBits bits : {KeyBits::k8, KeyBits::k4}) {
    for (int64_t dim : kDims) {
      for (int64_t rows : {1, 2, 3, 7, 14}) {
        const Rows x(bits, rows, 150, dim, 1);
        OnEveryUnit([&](const IntProducts& unit, const char* name) {
          for (auto [begin, n] : {std::pair<int64_t, int64_t>{0, 150},
                                  {0, 1},
                                  {5, 3},
                                  {15, 2},
                                  {16, 64},
                                  {7, 140},
                                  {149, 1},
                                  {40, 0}}) {
            std::vector<int32_t> dot(rows * n + 1, -7);
            unit.dots(bits, x.padded.data(), rows, dim, x.packed.data(), begin, n, dot.data());
            for (int64_t i = 0; i < rows * n; ++i) {
              ASSERT_EQ(dot[i],
                        IntDotReference(&x.q[i / n * dim], &x.k[(begin + i % n) * dim], dim))
                  << name << ": width " << dim << ", rows " << rows << ", from " << begin << ", "
                  << i;
            }
            EXPECT_EQ(dot.back(), -7);
          }
        });
      }
    }
  }
}
TEST(IntScore, WeighsPositiveProducts) {
  for (KeyBits bits : {KeyBits::k8, KeyBits::k4}) {
    for (int64_t dim : kDims) {
      for (int64_t heads : {1, 2, 3, 6, 7, 8, 64}) {
        const Rows x(bits, heads, 210, dim, 2);
        const std::vector<float> weight = Normal(heads, 3);
        std::vector<float> scale = Normal(210, 4);
        OnEveryUnit([&](const IntProducts& unit, const char* name) {
          std::vector<float> all;
          for (auto [begin, n] : {std::pair<int64_t, int64_t>{0, 210}, {3, 200}, {33, 9}, {0, 0}}) {
            std::vector<float> score(n + 1, -7);
            unit.score(bits, x.padded.data(), weight.data(), heads, dim, x.packed.data(),
                       scale.data(), begin, n, score.data());
            if (begin == 0 && n > 0) all = score;
            for (int64_t s = 0; s < n; ++s) {
              const double want = IntScoreReference(x.q.data(), weight.data(), heads, dim,
                                                    &x.k[(begin + s) * dim], scale[begin + s]);
              const double most = 127.0 * IntLimit(bits) * static_cast<double>(dim * heads);
              ASSERT_NEAR(score[s], want, 1e-6 * most) << name << " " << dim << " " << heads;
              // The bits do not depend on which keys are asked for.
              ASSERT_EQ(score[s], all[begin + s]) << name << " " << begin << " " << s;
            }
            EXPECT_EQ(score.back(), -7);
          }
        });
      }
    }
  }
}
TEST(IntScore, NanComesOut) {
  const Rows x(KeyBits::k8, 4, 70, 16, 2);
  OnEveryUnit([&](const IntProducts& unit, const char* name) {
    for (bool of_key : {false, true}) {
      std::vector<float> weight = {1, -2, 0.5, 1};
      std::vector<float> scale(70, 1.0f);
      (of_key ? scale[40] : weight[1]) = kNan;
      std::vector<float> score(70);
      unit.score(KeyBits::k8, x.padded.data(), weight.data(), 4, 16, x.packed.data(), scale.data(),
                 0, 70, score.data());
      for (int64_t s = 0; s < 70; ++s)
        EXPECT_EQ(std::isnan(score[s]), !of_key || s == 40) << name << " " << s;
    }
  });
}
TEST(QuantiseInt, IsTheReferences) {
  ForEachTarget([](const char* target) {
    for (int32_t limit : {127, 7}) {
      for (size_t n : {1, 5, 16, 64, 203}) {
        const std::vector<float> x = Normal(n, 5);
        std::vector<int8_t> got(n);
        float scale = 0;
        const std::vector<int64_t> want = QuantiseIntReference(x, limit, scale);
        EXPECT_EQ(QuantiseInt(x.data(), static_cast<int64_t>(n), limit, got.data()), scale);
        for (size_t i = 0; i < n; ++i) EXPECT_EQ(got[i], want[i]) << target << limit << " " << i;
        const auto most = [](int8_t a, int8_t b) { return std::abs(a) < std::abs(b); };
        EXPECT_EQ(std::abs(*std::max_element(got.begin(), got.end(), most)), limit);
      }
    }
  });
}
TEST(QuantiseInt, ZerosAndWhatIsNoNumber) {
  ForEachTarget([](const char* target) {
    constexpr int64_t kN = 40;
    const std::vector<int8_t> nothing(kN, 0);
    std::vector<int8_t> out(kN, 9);
    std::vector<float> x(kN, 0.0f);
    EXPECT_EQ(QuantiseInt(x.data(), kN, 127, out.data()), 0);
    EXPECT_EQ(out, nothing);
    for (float bad : {kNan, kInf, -kInf}) {
      for (int64_t at : {1, 39}) {
        std::fill(x.begin(), x.end(), 1.0f);
        x[at] = bad;
        std::fill(out.begin(), out.end(), int8_t{9});
        EXPECT_TRUE(std::isnan(QuantiseInt(x.data(), kN, 127, out.data()))) << target << bad;
        EXPECT_EQ(out, nothing);
      }
    }
    // Ties go to the even number.
    const std::vector<float> ties = {127, 2.5f, -3.5f};
    EXPECT_EQ(QuantiseInt(ties.data(), 3, 127, out.data()), 1);
    EXPECT_EQ(out[0], 127);
    EXPECT_EQ(out[1], 2);
    EXPECT_EQ(out[2], -4);
  });
}
}  // namespace int_score_test
}  // namespace sluice::kernels
