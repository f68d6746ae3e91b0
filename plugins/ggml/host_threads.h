#ifndef SLUICE_PLUGINS_GGML_HOST_THREADS_H_
#define SLUICE_PLUGINS_GGML_HOST_THREADS_H_
// Parallel work on the host's own threads. A host that keeps a ggml_threadpool (llama.cpp's
// programs do) leaves its threads waiting in a loop between the parts of a graph: threads of the
// backend's own would share the cores with them. The host names its pool to ggml's CPU backend
// alone, by a function that it looks up in that backend's registry at every graph: this listens in,
// and hands work to the pool as a graph of one custom operation. Where ggml was built with OpenMP,
// whose threads wait likewise, the same graph runs on those.
//
// A host without a pool has ggml start and join threads for every part of a graph, of which a
// second backend makes many. It is lent a pool, which both compute on.
#include <atomic>
#include <cstdint>
#include <memory>

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "sluice/api/executor.h"

SLUICE_BEGIN_NAMESPACE
namespace ggml {
// A function of whichever library of ggml is in this process; null: it is in none.
void* FindInProcess(const char* symbol);

// From now on what hosts tell their CPU backends is heard. Safe to call again. Without a CPU
// backend, or with one of another interface than this was built for, nothing is heard.
void ListenToHost();

// Threads that a backend computes on: the pool that the host told its CPU backend on this thread
// just before it told this backend how many threads to use, or one that is lent to it, or OpenMP's.
// Of a host that tells its CPU backend nothing: oneTBB's.
// Not for concurrent use, as a backend is not.
class HostThreads final : public Executor {
 public:
  // Work done so far, by whose threads did it.
  struct Calls {
    int64_t host = 0, own = 0;
  };
  explicit HostThreads(Calls* calls);
  ~HostThreads() override;
  // The host said how many; takes over which. Says whether num_workers is another now.
  bool Told(int threads);
  // The most that were told so far: a host has its numbers for prompts and for steps, and what is
  // sized by workers should not be made anew between them.
  int num_workers() const override { return most_; }
  void ParallelFor(int64_t n, int64_t grain, Body body) override;

 private:
  // One parallel loop.
  struct Job {
    int64_t n, grain, chunks;
    const Body* body;
    std::atomic<int64_t> next{0};
  };
  struct FreeContext {
    void operator()(ggml_context* c) const;
  };
  struct FreeBackend {
    void operator()(ggml_backend_t b) const;
  };
  static void Work(ggml_tensor* node, int thread, int threads, void* self);
  ggml_threadpool_t Lend(ggml_backend_t cpu, int threads);
  void UseHost(ggml_threadpool_t pool);
  bool RunOnHost(Job& job);

  Calls* calls_;
  std::unique_ptr<Executor> own_;
  int most_;
  bool was_told_ = false;
  ggml_threadpool_t pool_ = nullptr;
  ggml_threadpool_t lent_ = nullptr;
  int lent_threads_ = 0;
  std::unique_ptr<ggml_context, FreeContext> context_;  // of the graph
  std::unique_ptr<ggml_backend, FreeBackend> cpu_;      // that computes it; null: own threads
  ggml_cgraph* graph_ = nullptr;
  Job* job_ = nullptr;
};
}  // namespace ggml
SLUICE_END_NAMESPACE
#endif  // SLUICE_PLUGINS_GGML_HOST_THREADS_H_
