#include "sluice/runtime/kernels/top_p/top_p.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/top_p/top_p_reference.h"
#include "sluice/tests/support/normal_values.h"
#include "sluice/tests/support/not_finite.h"

namespace sluice::kernels {
namespace top_p_test {
using tests::kNan;

TEST(TopP, SameSetAsASort) {
  ForEachTarget([&](const char* target) {
    for (int64_t n : {0, 1, 5, 300}) {
      for (int kind = 0; kind < 3; ++kind) {
        std::vector<float> x = Normal(n, 12);
        for (int64_t i = 0; i < n; ++i) {
          x[i] = kind == 0   ? std::exp(2 * x[i])
                 : kind == 1 ? 1.0f
                             : (i % 4 == 0   ? kNan
                                : i % 4 == 1 ? -1.0f
                                : i % 4 == 2 ? 0.0f
                                             : 0.25f);
        }
        for (float p : {-1.0f, 0.0f, 0.1f, 0.51f, 0.9f, 1.0f, 2.0f}) {
          std::vector<uint32_t> out(n);
          std::vector<char> scratch(TopPScratchBytes(n));
          out.resize(TopP(x.data(), n, p, out.data(), scratch.data()));
          EXPECT_EQ(out, TopPReference(x.data(), n, p))
              << target << " n=" << n << " p=" << p << " kind=" << kind;
        }
      }
    }
  });
}
}  // namespace top_p_test
}  // namespace sluice::kernels
