#ifndef SLUICE_API_EXECUTOR_H_
#define SLUICE_API_EXECUTOR_H_
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// Borrowed parallelism: the host owns the threads. `worker` is in [0, num_workers) and unique among
// concurrent bodies, so scratch can be indexed by it. Bodies neither block nor lock. Results never
// depend on the number of workers.
class Executor {
 public:
  using Body = absl::FunctionRef<void(int64_t begin, int64_t end, int worker)>;
  virtual ~Executor() = default;
  virtual int num_workers() const = 0;
  virtual void ParallelFor(int64_t n, int64_t grain, Body body) = 0;
};

class InlineExecutor final : public Executor {
 public:
  int num_workers() const override { return 1; }
  void ParallelFor(int64_t n, int64_t /*grain*/, Body body) override {
    if (n > 0) body(0, n, 0);
  }
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_EXECUTOR_H_
