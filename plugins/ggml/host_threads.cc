#include "sluice/plugins/ggml/host_threads.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "sluice/runtime/base/tbb_executor.h"

SLUICE_BEGIN_NAMESPACE
namespace ggml {
namespace {
template <class F>
F* Find(const char* symbol) {
  return reinterpret_cast<F*>(FindInProcess(symbol));
}
// What ggml's base library makes a graph with.
struct Base {
  decltype(&ggml_init) init = Find<decltype(ggml_init)>("ggml_init");
  decltype(&ggml_free) free = Find<decltype(ggml_free)>("ggml_free");
  decltype(&ggml_custom_4d) custom = Find<decltype(ggml_custom_4d)>("ggml_custom_4d");
  decltype(&ggml_new_graph_custom) graph =
      Find<decltype(ggml_new_graph_custom)>("ggml_new_graph_custom");
  decltype(&ggml_build_forward_expand) expand =
      Find<decltype(ggml_build_forward_expand)>("ggml_build_forward_expand");

  bool complete() const { return init && free && custom && graph && expand; }
};
const Base& TheBase() {
  static const Base base;
  return base;
}

using SetPool = decltype(ggml_backend_cpu_set_threadpool);
using SetThreads = decltype(ggml_backend_cpu_set_n_threads);
using NewPool = decltype(ggml_threadpool_new);
using ProcAddress = decltype(ggml_backend_reg_i::get_proc_address);

// The CPU backend's registry, and what it answered before.
struct Heard {
  ggml_backend_reg_t registry = nullptr;
  ProcAddress proc_address = nullptr;
  SetPool* set_pool = nullptr;
  SetThreads* set_threads = nullptr;
  NewPool* new_pool = nullptr;
  bool openmp = false;
};
Heard heard;
// What the host told on this thread and nobody has asked for yet.
struct Told {
  ggml_backend_t cpu = nullptr;
  ggml_threadpool_t pool = nullptr;
};
thread_local Told told;

// Pools that are lent, and those that came back. None is freed: a CPU backend may outlive the
// backend that lent it one.
class Lent {
 public:
  ggml_threadpool_t Take(int threads) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<ggml_threadpool_t>& back = back_[threads];
    if (!back.empty()) {
      const ggml_threadpool_t pool = back.back();
      back.pop_back();
      return pool;
    }
    using Params = decltype(ggml_threadpool_params_default);
    static const auto params_of = Find<Params>("ggml_threadpool_params_default");
    if (params_of == nullptr || heard.new_pool == nullptr) return nullptr;
    ggml_threadpool_params params = params_of(threads);
    params.poll = kPoll;
    return heard.new_pool(&params);
  }
  void GiveBack(ggml_threadpool_t pool, int threads) {
    const std::lock_guard<std::mutex> lock(mutex_);
    back_[threads].push_back(pool);
  }
  void SetHolder(ggml_backend_t cpu, bool holds) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (holds) {
      holders_.insert(cpu);
    } else {
      holders_.erase(cpu);
    }
  }
  bool Holds(ggml_backend_t cpu) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return holders_.count(cpu) > 0;
  }

 private:
  // Of 100: waits in a loop from one part of a graph to the next and from step to step, not long
  // after the last.
  static constexpr uint32_t kPoll = 5;
  std::mutex mutex_;
  std::map<int, std::vector<ggml_threadpool_t>> back_;
  std::set<ggml_backend_t> holders_;
};
Lent& TheLent() {
  static auto* lent = new Lent;  // hosts may end in any order
  return *lent;
}

void HearPool(ggml_backend_t cpu, ggml_threadpool_t pool) {
  told = {cpu, pool};
  // Told "none" at every graph, a CPU backend that holds a lent pool would send it to sleep.
  if (pool == nullptr && TheLent().Holds(cpu)) return;
  TheLent().SetHolder(cpu, false);
  heard.set_pool(cpu, pool);
}
void* HearProcAddress(ggml_backend_reg_t registry, const char* name) {
  if (std::strcmp(name, "ggml_backend_cpu_set_threadpool") == 0)
    return reinterpret_cast<void*>(HearPool);
  return heard.proc_address(registry, name);
}

bool Listen() {
  using ByName = decltype(ggml_backend_reg_by_name);
  const auto by_name = Find<ByName>("ggml_backend_reg_by_name");
  if (by_name == nullptr || !TheBase().complete()) return false;
  const ggml_backend_reg_t registry = by_name("CPU");
  if (registry == nullptr || registry->api_version != GGML_BACKEND_API_VERSION ||
      registry->iface.get_proc_address == nullptr || registry->iface.get_device == nullptr)
    return false;
  const auto answer = [&](const char* name) {
    return registry->iface.get_proc_address(registry, name);
  };
  heard.registry = registry;
  heard.proc_address = registry->iface.get_proc_address;
  heard.set_pool = reinterpret_cast<SetPool*>(answer("ggml_backend_cpu_set_threadpool"));
  heard.set_threads = reinterpret_cast<SetThreads*>(answer("ggml_backend_set_n_threads"));
  heard.new_pool = reinterpret_cast<NewPool*>(answer("ggml_threadpool_new"));
  if (heard.set_pool == nullptr || heard.set_threads == nullptr) return false;
  using Features = ggml_backend_feature*(ggml_backend_reg_t);
  const auto features = reinterpret_cast<Features*>(answer("ggml_backend_get_features"));
  for (const ggml_backend_feature* f = features != nullptr ? features(registry) : nullptr;
       f != nullptr && f->name != nullptr; ++f)
    heard.openmp |= std::strcmp(f->name, "OPENMP") == 0;
  // The registry will point into this library, which therefore stays.
  Dl_info self;
  if (dladdr(reinterpret_cast<void*>(HearProcAddress), &self) == 0 ||
      dlopen(self.dli_fname, RTLD_NOLOAD | RTLD_NODELETE | RTLD_LAZY) == nullptr)
    return false;
  registry->iface.get_proc_address = HearProcAddress;
  return true;
}
constexpr size_t kGraphBytes = size_t{64} << 10;
constexpr size_t kGraphNodes = 8;
}  // namespace

void* FindInProcess(const char* symbol) {
  if (void* at = dlsym(RTLD_DEFAULT, symbol); at != nullptr) return at;
  // A host that was itself loaded (Python, Node) keeps ggml's names to itself.
  static const std::vector<void*> libraries = [] {
    std::vector<std::string> paths;
    dl_iterate_phdr(
        [](dl_phdr_info* library, size_t, void* out) {
          const std::string path = library->dlpi_name;
          if (path.find("libggml", path.rfind('/') + 1) != std::string::npos)
            static_cast<std::vector<std::string>*>(out)->push_back(path);
          return 0;
        },
        &paths);
    std::vector<void*> open;
    for (const std::string& path : paths) {
      if (void* library = dlopen(path.c_str(), RTLD_NOLOAD | RTLD_LAZY); library != nullptr)
        open.push_back(library);
    }
    return open;
  }();
  for (void* library : libraries) {
    if (void* at = dlsym(library, symbol); at != nullptr) return at;
  }
  return nullptr;
}

void ListenToHost() {
  static std::mutex mutex;
  static bool listens = false;
  const std::lock_guard<std::mutex> lock(mutex);
  listens = listens || Listen();
}

void HostThreads::FreeContext::operator()(ggml_context* c) const { TheBase().free(c); }
void HostThreads::FreeBackend::operator()(ggml_backend_t b) const { b->iface.free(b); }
// As many as there are processors, until the host says.
HostThreads::HostThreads(Calls* calls)
    : calls_(calls), own_(MakeTbbExecutor()), most_(own_->num_workers()) {}
HostThreads::~HostThreads() {
  if (lent_ != nullptr) TheLent().GiveBack(lent_, lent_threads_);
}

bool HostThreads::Told(int threads) {
  threads = std::max(1, threads);
  const int before = most_;
  most_ = was_told_ ? std::max(most_, threads) : threads;
  was_told_ = true;
  if (threads != own_->num_workers()) own_ = MakeTbbExecutor(threads);
  // Nothing heard on this thread: what the host had may be gone.
  auto [cpu, pool] = std::exchange(told, {});
  if (cpu != nullptr && pool == nullptr && threads > 1 && !heard.openmp) pool = Lend(cpu, threads);
  UseHost(pool);
  if (cpu_ != nullptr) heard.set_threads(cpu_.get(), threads);
  return most_ != before;
}

ggml_threadpool_t HostThreads::Lend(ggml_backend_t cpu, int threads) {
  if (lent_ == nullptr || lent_threads_ != threads) {
    const ggml_threadpool_t other = TheLent().Take(threads);
    if (other == nullptr) return nullptr;
    heard.set_pool(cpu, other);  // before the one that it may hold is lent again
    if (lent_ != nullptr) TheLent().GiveBack(lent_, lent_threads_);
    lent_ = other;
    lent_threads_ = threads;
  }
  heard.set_pool(cpu, lent_);
  TheLent().SetHolder(cpu, true);
  return lent_;
}

void HostThreads::UseHost(ggml_threadpool_t pool) {
  const bool computes = pool != nullptr || heard.openmp;
  if (pool == pool_ && computes == (cpu_ != nullptr)) return;
  // A new one, since a CPU backend would still pause the pool that it had.
  cpu_.reset();
  pool_ = pool;
  if (!computes) return;
  const ggml_backend_dev_t device = heard.registry->iface.get_device(heard.registry, 0);
  cpu_.reset(device->iface.init_backend(device, nullptr));
  if (cpu_ == nullptr) return;
  if (pool != nullptr) heard.set_pool(cpu_.get(), pool);
  if (context_ != nullptr) return;
  context_.reset(TheBase().init({kGraphBytes, nullptr, /*no_alloc=*/true}));
  if (context_ == nullptr) return;
  ggml_tensor* node = TheBase().custom(context_.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, Work,
                                       GGML_N_TASKS_MAX, this);
  graph_ = TheBase().graph(context_.get(), kGraphNodes, /*grads=*/false);
  TheBase().expand(graph_, node);
}

void HostThreads::Work(ggml_tensor*, int thread, int, void* self) {
  Job& job = *static_cast<HostThreads*>(self)->job_;
  for (int64_t c = job.next.fetch_add(1); c < job.chunks; c = job.next.fetch_add(1))
    (*job.body)(c* job.grain, std::min(job.n, (c + 1) * job.grain), thread);
}
bool HostThreads::RunOnHost(Job& job) {
  if (cpu_ == nullptr || graph_ == nullptr) return false;
  job_ = &job;
  return cpu_->iface.graph_compute(cpu_.get(), graph_) == GGML_STATUS_SUCCESS;
}

void HostThreads::ParallelFor(int64_t n, int64_t grain, Body body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t chunks = (n + grain - 1) / grain;
  if (own_->num_workers() == 1 || chunks == 1) return body(0, n, 0);
  Job job{n, grain, chunks, &body};
  if (RunOnHost(job)) {
    ++calls_->host;
    return;
  }
  ++calls_->own;
  own_->ParallelFor(n, grain, body);
}
}  // namespace ggml
SLUICE_END_NAMESPACE
