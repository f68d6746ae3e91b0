#include "sluice/policies/common/bootstrap.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"

SLUICE_BEGIN_NAMESPACE
namespace bootstrap_test {
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
// n numbers of mean 0: normal, exponential less 1, log-normal of sigma 0.5 less its mean.
std::vector<double> Drawn(int distribution, uint64_t run, uint64_t n) {
  std::vector<double> x;
  for (uint64_t i = 0; i < n; ++i) {
    const double u = RandomUniform({run, i, 7, 0, 0});
    const double z = NormalQuantile(std::clamp(u, 1e-12, 1 - 1e-12));
    x.push_back(distribution == 0   ? z
                : distribution == 1 ? -std::log1p(-u) - 1
                                    : std::exp(z / 2) - std::exp(0.125));
  }
  return x;
}
TEST(FewInterval, CoversTheMeanOfFewSkewedNumbers) {
  constexpr int kRuns = 2000;
  const auto coverage = [](int distribution, uint64_t n, auto&& interval) {
    int covered = 0;
    for (uint64_t run = 0; run < kRuns; ++run) {
      const MeanInterval i = interval(Drawn(distribution, run * 100 + n, n), run);
      covered += i.low <= 0 && 0 <= i.high;
    }
    return covered / double{kRuns};
  };
  const auto few = [](const std::vector<double>& x, uint64_t run) {
    return FewInterval(x, 400, run);
  };
  const auto student = [](const std::vector<double>& x, uint64_t) { return StudentInterval(x); };
  const auto percentiles = [](const std::vector<double>& x, uint64_t run) {
    const auto n = static_cast<int64_t>(x.size());
    return PairedBootstrap(n, 400, run, [&](absl::Span<const int64_t> drawn) {
      double sum = 0;
      for (int64_t i : drawn) sum += x[i];
      return sum / static_cast<double>(n);
    });
  };
  for (int distribution : {0, 1, 2}) {
    for (uint64_t n : {4, 5, 8, 16}) {
      const double c = coverage(distribution, n, few);
      RecordProperty(absl::StrCat("coverage_", distribution, "_", n), absl::StrCat(c));
      EXPECT_GE(c, 0.93) << "distribution " << distribution << ", n " << n;
    }
  }
  // What it stands in for.
  EXPECT_LT(coverage(1, 5, student), 0.90);
  EXPECT_LT(coverage(0, 5, percentiles), 0.88);
}
TEST(FewInterval, IsAtLeastStudents) {
  const std::vector<double> x = {1, 2, 3, 4, 10};
  const MeanInterval student = StudentInterval(x);
  const MeanInterval few = FewInterval(x, 2000, 1);
  EXPECT_EQ(few.value, 4);
  EXPECT_LE(few.low, student.low);
  EXPECT_GT(few.high, student.high);  // the long side
  EXPECT_EQ(FewInterval({x.data(), 1}, 2000, 1).high, 1);
  const std::vector<double> same(5, 0.25);
  EXPECT_EQ(FewInterval(same, 2000, 1).low, 0.25);
  EXPECT_EQ(FewInterval(same, 2000, 1).high, 0.25);
}
TEST(ParetoFront, KeepsWhoIsNotBeaten) {
  const Tradeoff x[] = {{1, 0.9},   {0.5, 0.8}, {0.5, 0.7}, {0.2, 0.7},
                        {0.2, 0.7}, {0.1, NAN}, {2, 0.9}};
  EXPECT_THAT(ParetoFront(x), testing::ElementsAre(true, true, false, true, true, false, false));
}
}  // namespace bootstrap_test
SLUICE_END_NAMESPACE
