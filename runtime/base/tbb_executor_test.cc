#include "sluice/runtime/base/tbb_executor.h"

#include <gtest/gtest.h>
#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/partitioner.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

SLUICE_BEGIN_NAMESPACE
namespace tbb_executor_test {
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

// How many of `wanted` threads meet inside one tbb::parallel_for of the host's own.
int ThreadsOfTheHost(int wanted) {
  std::atomic<int> inside{0};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  tbb::task_arena arena(wanted);
  arena.execute([&] {
    tbb::parallel_for(
        0, wanted,
        [&](int) {
          ++inside;
          // Whoever came waits for the others, so that no thread takes two turns.
          while (inside < wanted && std::chrono::steady_clock::now() < deadline) {
            std::this_thread::yield();
          }
          // Too late: the turns left over must not count.
          if (std::chrono::steady_clock::now() >= deadline) inside -= wanted;
        },
        tbb::static_partitioner());
  });
  return inside;
}

TEST(TbbExecutor, LimitsNobodyElseInTheProcess) {
  using Control = tbb::global_control;
  const size_t allowed = Control::active_value(Control::max_allowed_parallelism);
  const size_t stack = Control::active_value(Control::thread_stack_size);
  const int default_width = tbb::this_task_arena::max_concurrency();
  for (int threads : {1, 2, 64}) {
    const std::unique_ptr<Executor> ex = MakeTbbExecutor(threads);
    std::atomic<int64_t> sum{0};
    ex->ParallelFor(100, 1, [&](int64_t b, int64_t e, int) { sum += e - b; });
    EXPECT_EQ(sum, 100);
    EXPECT_EQ(Control::active_value(Control::max_allowed_parallelism), allowed) << threads;
    EXPECT_EQ(Control::active_value(Control::thread_stack_size), stack) << threads;
    EXPECT_EQ(tbb::this_task_arena::max_concurrency(), default_width) << threads;
    if (std::thread::hardware_concurrency() >= 2) {
      EXPECT_EQ(ThreadsOfTheHost(2), 2) << threads;
    }
  }
}

TEST(TbbExecutor, MoreWorkersThanCpus) {
  const int cpus = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const auto squares = [](Executor& ex) {
    std::vector<int64_t> out(1000);
    ex.ParallelFor(1000, 7, [&](int64_t b, int64_t e, int w) {
      EXPECT_LT(w, ex.num_workers());
      for (int64_t i = b; i < e; ++i) out[i] = i * i;
    });
    return out;
  };
  InlineExecutor one;
  const std::vector<int64_t> want = squares(one);
  for (int threads : {cpus + 1, 4 * cpus + 3}) {
    testing::internal::CaptureStderr();
    const std::unique_ptr<Executor> ex = MakeTbbExecutor(threads);
    EXPECT_EQ(ex->num_workers(), threads);
    EXPECT_EQ(squares(*ex), want);
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  }
}
}  // namespace tbb_executor_test
SLUICE_END_NAMESPACE
