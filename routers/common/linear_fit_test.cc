#include "sluice/routers/common/linear_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/tests/support/normal_values.h"

SLUICE_BEGIN_NAMESPACE
namespace linear_fit_test {
using testing::HasSubstr;
constexpr int64_t kIn = 7;
constexpr int64_t kOut = 3;
constexpr int64_t kRows = 40;

struct Samples {
  std::vector<float> x = kernels::Normal(kRows * kIn, 1);
  std::vector<float> y = kernels::Normal(kRows * kOut, 2);

  absl::StatusOr<Linear> Fit(bool with_bias, double ridge) const {
    LinearFit fit(kIn, kOut, with_bias);
    for (int64_t r = 0; r < kRows; ++r) fit.Add(&x[r * kIn], &y[r * kOut]);
    return fit.Solve(ridge);
  }
};

// At the minimum the slope of the objective is 0, by plain loops.
TEST(LinearFit, NothingIsBetter) {
  Samples s;
  for (float& v : s.x) v += 2;  // a mean that a bias must take up
  for (const bool with_bias : {true, false}) {
    for (const double ridge : {0.0, 0.3}) {
      const auto l = s.Fit(with_bias, ridge);
      ASSERT_TRUE(l.ok()) << l.status();
      double penalty = 0;
      for (int64_t i = 0; i < kIn; ++i) {
        double mean = 0;
        for (int64_t r = 0; r < kRows; ++r)
          mean += with_bias ? static_cast<double>(s.x[r * kIn + i]) / kRows : 0;
        for (int64_t r = 0; r < kRows; ++r) {
          const double off = static_cast<double>(s.x[r * kIn + i]) - mean;
          penalty += ridge * off * off / kIn;
        }
      }
      for (int64_t o = 0; o < kOut; ++o) {
        double of_bias = 0;
        std::vector<double> slope(kIn);
        for (int64_t r = 0; r < kRows; ++r) {
          double miss = static_cast<double>(l->bias[o]) - static_cast<double>(s.y[r * kOut + o]);
          for (int64_t i = 0; i < kIn; ++i)
            miss +=
                static_cast<double>(l->weight[o * kIn + i]) * static_cast<double>(s.x[r * kIn + i]);
          of_bias += miss;
          for (int64_t i = 0; i < kIn; ++i)
            slope[i] += miss * static_cast<double>(s.x[r * kIn + i]);
        }
        if (with_bias) {
          EXPECT_NEAR(of_bias, 0, 1e-4) << o;
        } else {
          EXPECT_EQ(l->bias[o], 0);
        }
        for (int64_t i = 0; i < kIn; ++i)
          EXPECT_NEAR(slope[i] + penalty * static_cast<double>(l->weight[o * kIn + i]), 0, 2e-4);
      }
    }
  }
}
TEST(LinearFit, ErrorsSayWhatIsWrong) {
  const auto said = [](const absl::StatusOr<Linear>& l) {
    return std::string(l.status().message());
  };
  Samples s;
  EXPECT_THAT(said(s.Fit(true, -1)), HasSubstr("ridge -1"));
  EXPECT_THAT(said(s.Fit(true, NAN)), HasSubstr("ridge nan"));
  LinearFit one(kIn, kOut);
  one.Add(s.x.data(), s.y.data());
  EXPECT_THAT(said(one.Solve()), HasSubstr("a fit of 1 samples"));
  Samples flat;
  for (int64_t r = 0; r < kRows; ++r) flat.x[r * kIn + 2] = 1;
  EXPECT_THAT(said(flat.Fit(true, 0)), HasSubstr("span their space; use ridge > 0"));
  EXPECT_TRUE(flat.Fit(true, 1e-6).ok());
  Samples odd;
  odd.x[3] = NAN;
  EXPECT_THAT(said(odd.Fit(true, 1e-3)), HasSubstr("not finite"));
  odd = {};
  odd.y[4] = INFINITY;
  EXPECT_THAT(said(odd.Fit(true, 1e-3)), HasSubstr("output 1 is not finite"));
}
}  // namespace linear_fit_test
SLUICE_END_NAMESPACE
