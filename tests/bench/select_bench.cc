// Selection: top-k beside std::nth_element and the bare read; HISA beside the flat DSA indexer.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>

#include "sluice/routers/builtin.h"
#include "sluice/runtime/attend/metrics.h"
#include "sluice/runtime/kernels/dot/dot.h"
#include "sluice/runtime/kernels/top_k/top_k.h"
#include "sluice/tests/support/attention_data.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr size_t kN = 65536, kK = 2048;
const std::vector<float>& Scores() {
  static const std::vector<float> x = [] {
    std::mt19937 g(1);
    std::normal_distribution<float> d;
    std::vector<float> s(kN);
    for (float& e : s) e = d(g);
    return s;
  }();
  return x;
}
void NthElement(benchmark::State& state) {
  std::vector<uint32_t> ids(kN);
  const float* x = Scores().data();
  for (auto _ : state) {
    std::iota(ids.begin(), ids.end(), 0u);
    std::nth_element(ids.begin(), ids.begin() + kK, ids.end(),
                     [x](uint32_t a, uint32_t b) { return x[a] > x[b]; });
    benchmark::DoNotOptimize(ids.data());
  }
}
void NthElementValuesOnly(benchmark::State& state) {
  std::vector<float> copy(kN);
  for (auto _ : state) {
    copy = Scores();
    std::nth_element(copy.begin(), copy.begin() + kK, copy.end(), std::greater<float>());
    benchmark::DoNotOptimize(copy.data());
  }
}
void ReadOnce(benchmark::State& state) {  // 256 KiB: lies in L2
  for (auto _ : state)
    benchmark::DoNotOptimize(kernels::Dot(Scores().data(), Scores().data(), DType::kF32, kN));
}
void TopK(benchmark::State& state) {
  std::vector<uint32_t> ids(kK);
  std::vector<char> scratch(kernels::TopKScratchBytes(kN));
  for (auto _ : state) {
    kernels::TopK(Scores().data(), kN, kK, ids.data(), scratch.data());
    benchmark::DoNotOptimize(ids.data());
  }
}
BENCHMARK(NthElement)->Unit(benchmark::kMicrosecond);
BENCHMARK(NthElementValuesOnly)->Unit(benchmark::kMicrosecond);
BENCHMARK(ReadOnce)->Unit(benchmark::kMicrosecond);
BENCHMARK(TopK)->Unit(benchmark::kMicrosecond);

// Index keys with topics that last 128 tokens; a query looks for one topic among those it can see.
struct Planted {
  explicit Planted(int64_t keys) : n(keys) {
    const auto normal = [](uint64_t unit, int64_t item) {
      return static_cast<float>(RandomNormal({9, 0, 0, unit, static_cast<uint64_t>(item)}));
    };
    k.resize(n * kWidth);
    for (int64_t s = 0; s < n; ++s) {
      for (int64_t x = 0; x < kWidth; ++x)
        k[s * kWidth + x] = 0.4f * normal(1, s * kWidth + x) + normal(2, s / 128 * kWidth + x);
    }
    q.resize(kQueries * kHeads * kWidth);
    w.resize(kQueries * kHeads, 1.0f / kHeads);
    for (int64_t i = 0; i < kQueries; ++i) {
      for (int64_t h = 0; h < kHeads;
           ++h) {  // every index head looks for one topic; 16 topics hold the 2048 best
        const int64_t topic = static_cast<int64_t>(
            RandomBits({9, 1, 0, static_cast<uint64_t>(h % 16), static_cast<uint64_t>(i)}) %
            static_cast<uint64_t>(n / 128));
        for (int64_t x = 0; x < kWidth; ++x)
          q[(i * kHeads + h) * kWidth + x] =
              0.2f * normal(3, (i * kHeads + h) * kWidth + x) + normal(2, topic * kWidth + x);
      }
    }
  }
  static constexpr int64_t kWidth = 128, kHeads = 64, kQueries = 8;
  int64_t n;
  std::vector<float> q, w, k;
};
void Indexer(benchmark::State& state, const std::string& spec, const std::string& against) {
  const int64_t n = state.range(0);
  static std::map<int64_t, std::unique_ptr<Planted>> all;
  auto& planted = all[n];
  if (planted == nullptr) planted = std::make_unique<Planted>(n);
  const AttentionData a =
      MakeAttentionData(DataKind::kGaussian, n, Planted::kQueries, 1, 1, 16, 16, 1);
  AttentionInputs in = a.Inputs();
  in.index.q = {planted->q.data(),
                Planted::kQueries,
                Planted::kHeads,
                Planted::kWidth,
                Planted::kHeads * Planted::kWidth,
                Planted::kWidth};
  in.index.weight = {planted->w.data(), Planted::kQueries, Planted::kHeads, Planted::kHeads};
  in.index.k = {planted->k.data(), DType::kF32,    n, 1, Planted::kWidth,
                Planted::kWidth,   Planted::kWidth};
  const AttentionShape s = {.max_queries = Planted::kQueries,
                            .max_kv = n,
                            .heads = 1,
                            .kv_heads = 1,
                            .head_dim = 16,
                            .value_dim = 16,
                            .index_heads = static_cast<int>(Planted::kHeads),
                            .index_dim = static_cast<int>(Planted::kWidth)};
  InlineExecutor ex;
  struct One {
    std::unique_ptr<const AttentionRouter> router;
    std::unique_ptr<const AttentionRouter::Plan> plan;
    OwnedWorkspace ws, memory;
    RouterState state;
    std::unique_ptr<PlanStorage> storage;
  } one, other;
  for (auto [o, name] : {std::pair<One*, std::string>{&one, spec}, {&other, against}}) {
    o->router = *BuiltinRouters().attention.Create(name);
    o->plan = *o->router->MakePlan(s);
    o->ws.Resize(o->plan->info().workspace_bytes);
    o->memory.Resize(o->plan->info().state_bytes);
    o->state.layer = o->memory.data();
    o->storage = *PlanStorage::Create(o->plan->info().layout);
    // Summaries of the prefix exist afterwards.
    (void)o->router->Run(*o->plan, in, o->state, {o->ws.workspace(), &ex}, *o->storage);
  }
  for (auto _ : state)
    (void)one.router->Run(*one.plan, in, one.state, {one.ws.workspace(), &ex}, *one.storage);
  double iou = 0;
  const AttentionBranch &x = one.storage->plan().branches[0],
                        &y = other.storage->plan().branches[0];
  for (size_t i = 0; i < Planted::kQueries; ++i)
    iou += IoU(x.tokens.subspan(x.rows.begin[i], x.rows.count[i]),
               y.tokens.subspan(y.rows.begin[i], y.rows.count[i]));
  state.counters["IoU"] = iou / Planted::kQueries;
  state.counters["queries/s"] =
      benchmark::Counter(Planted::kQueries, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK_CAPTURE(Indexer, dsa, "dsa:k=2048", "dsa:k=2048")
    ->Arg(32768)
    ->Arg(131072)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Indexer, hisa, "hisa:k=2048,m=64,block=128", "dsa:k=2048")
    ->Arg(32768)
    ->Arg(131072)
    ->Unit(benchmark::kMillisecond);
}  // namespace
SLUICE_END_NAMESPACE
BENCHMARK_MAIN();
