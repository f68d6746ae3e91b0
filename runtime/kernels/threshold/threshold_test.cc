#include "sluice/runtime/kernels/threshold/threshold.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/threshold/threshold_reference.h"
#include "sluice/tests/support/normal_values.h"
#include "sluice/tests/support/not_finite.h"

namespace sluice::kernels {
namespace threshold_test {
using tests::kInf;
using tests::kNan;

TEST(Threshold, SameIndices) {
  ForEachTarget([&](const char* target) {
    for (int64_t n : {0, 1, 15, 16, 17, 1000}) {
      std::vector<float> x = Normal(n, 8);
      if (n > 4) x[4] = kNan;
      for (float tau : {-kInf, -1.0f, 0.0f, 1.0f, kInf}) {
        std::vector<uint32_t> out(n);
        out.resize(ThresholdCompress(x.data(), n, tau, out.data()));
        EXPECT_EQ(out, ThresholdReference(x.data(), n, tau)) << target << " " << n;
      }
    }
  });
}
}  // namespace threshold_test
}  // namespace sluice::kernels
