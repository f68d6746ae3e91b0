#include "sluice/runtime/kernels/softmax/softmax.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/softmax/softmax_reference.h"
#include "sluice/tests/support/normal_values.h"
#include "sluice/tests/support/not_finite.h"

namespace sluice::kernels {
namespace softmax_test {
using tests::kInf;
using tests::kNan;

TEST(Softmax, AgreesAndHandlesTheEdges) {
  ForEachTarget([&](const char* target) {
    for (int64_t n : {1, 3, 16, 64, 65, 1000}) {
      std::vector<float> x = Normal(n, 4);
      for (float& e : x) e *= 20;
      if (n > 2) x[1] = -kInf;
      std::vector<double> p(n);
      const double lse = SoftmaxReference(x.data(), n, p.data());
      EXPECT_NEAR(LogSumExp(x.data(), n), lse, 1e-4) << target;
      EXPECT_NEAR(Softmax(x.data(), n), lse, 1e-4) << target;
      for (int64_t i = 0; i < n; ++i) EXPECT_NEAR(x[i], p[i], 1e-6) << target;
      if (n > 2) {
        EXPECT_EQ(x[1], 0) << target;
      }
    }
    EXPECT_EQ(Softmax(nullptr, 0), -kInf) << target;
    std::vector<float> none(20, -kInf);
    EXPECT_EQ(Softmax(none.data(), 20), -kInf) << target;
    EXPECT_EQ(none[7], 0) << target;
    std::vector<float> bad(20, 1.0f);
    bad[3] = kNan;
    EXPECT_TRUE(std::isnan(Softmax(bad.data(), 20))) << target;
  });
}
}  // namespace softmax_test
}  // namespace sluice::kernels
