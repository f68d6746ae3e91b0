#include "sluice/runtime/base/tbb_executor.h"

#include <tbb/global_control.h>
#include <tbb/info.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <atomic>
#include <limits>

SLUICE_BEGIN_NAMESPACE
namespace {
// Slots of an arena for `threads` workers: no more than oneTBB has threads for, which it would only
// say on stderr. The workers beyond them are run by the same threads, one after the other.
int Slots(int threads) {
  using Control = tbb::global_control;
  const auto allowed = static_cast<int>(std::min<size_t>(
      Control::active_value(Control::max_allowed_parallelism), std::numeric_limits<int>::max()));
  return std::min(threads, std::max(allowed, tbb::info::default_concurrency()));
}

class TbbExecutor final : public Executor {
 public:
  explicit TbbExecutor(int threads) : threads_(threads), arena_(Slots(threads)) {}
  int num_workers() const override { return threads_; }
  void ParallelFor(int64_t n, int64_t grain, Body body) override {
    if (n <= 0) return;
    grain = std::max<int64_t>(grain, 1);
    const int64_t chunks = (n + grain - 1) / grain;
    if (threads_ == 1 || chunks == 1) return body(0, n, 0);
    // Workers take chunks in rising order, so callers that sort by falling cost get a balanced
    // tail. The atomics also order the caller's memory against the workers', whatever the library
    // does inside.
    std::atomic<int64_t> next{0}, done{0};
    next.store(0, std::memory_order_release);
    arena_.execute([&] {
      tbb::parallel_for(
          0, static_cast<int>(std::min<int64_t>(threads_, chunks)),
          [&](int worker) {
            for (int64_t c = next.fetch_add(1); c < chunks; c = next.fetch_add(1))
              body(c * grain, std::min(n, (c + 1) * grain), worker);
            done.fetch_add(1, std::memory_order_acq_rel);
          },
          tbb::static_partitioner());
    });
    (void)done.load(std::memory_order_acquire);
  }

 private:
  int threads_;
  // The arena's size is the only limit on threads: tbb::global_control would hold for the whole
  // process, the host's own TBB code included.
  tbb::task_arena arena_;
};
}  // namespace

std::unique_ptr<Executor> MakeTbbExecutor(int threads) {
  return std::make_unique<TbbExecutor>(threads > 0 ? threads
                                                   : tbb::this_task_arena::max_concurrency());
}
SLUICE_END_NAMESPACE
