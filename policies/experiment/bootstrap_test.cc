#include "sluice/policies/experiment/bootstrap.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

SLUICE_BEGIN_NAMESPACE
namespace {
TEST(PairedBootstrap, CoversTheTrueDifference) {
  int covered = 0;
  for (uint64_t run = 0; run < 400; ++run) {
    std::vector<double> a, b;
    for (uint64_t i = 0; i < 40; ++i) {
      auto draw = [&](uint64_t what) { return RandomUniform({run, i, what, 0, 0}); };
      const double hard = 5 * draw(0);  // shared by both: pairing takes it out
      a.push_back(hard + draw(1));
      b.push_back(hard + draw(2) + 0.1);
    }
    const auto r = PairedBootstrap(40, 400, run, [&](absl::Span<const int64_t> docs) {
      double d = 0;
      for (int64_t i : docs) d += (b[i] - a[i]) / 40;
      return d;
    });
    covered += r.low <= 0.1 && 0.1 <= r.high;
    EXPECT_LT(r.high - r.low, 0.4);
  }
  EXPECT_GE(covered, 365);  // 92 %: percentiles of 40 documents are a little narrow
}
TEST(PairedBootstrap, OneDocumentHasNoInterval) {
  const auto r = PairedBootstrap(1, 100, 1, [](absl::Span<const int64_t>) { return 3.0; });
  EXPECT_EQ(r.low, 3);
  EXPECT_EQ(r.high, 3);
}
TEST(ParetoFront, KeepsWhoIsNotBeaten) {
  const Tradeoff x[] = {{1, 0.9},   {0.5, 0.8}, {0.5, 0.7}, {0.2, 0.7},
                        {0.2, 0.7}, {0.1, NAN}, {2, 0.9}};
  EXPECT_THAT(ParetoFront(x), testing::ElementsAre(true, true, false, true, true, false, false));
}
}  // namespace
SLUICE_END_NAMESPACE
