#include "sluice/runtime/base/tbb_executor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

SLUICE_BEGIN_NAMESPACE
namespace {
TEST(TbbExecutor, EachIndexOnceAndWorkersAreExclusive) {
  for (int threads : {1, 2, 5}) {
    std::unique_ptr<Executor> ex = MakeTbbExecutor(threads);
    EXPECT_EQ(ex->num_workers(), threads);
    for (int64_t n : {0, 1, 7, 1000}) {
      std::vector<int> seen(n);
      std::vector<std::atomic<int>> inside(threads);
      ex->ParallelFor(n, 3, [&](int64_t b, int64_t e, int w) {
        EXPECT_EQ(inside[w]++, 0);
        for (int64_t i = b; i < e; ++i) ++seen[i];
        --inside[w];
      });
      for (int s : seen) EXPECT_EQ(s, 1);
    }
  }
}
}  // namespace
SLUICE_END_NAMESPACE
