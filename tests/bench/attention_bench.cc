// Attention: dense prefill beside oneDNN, block-sparse beside dense, planning beside
// both, bf16 units beside fp32. Causal, head width 64 (`dim`, where it is named), 8 query heads, 2
// KV heads. Every number is one whole prefill of `tokens`; decode: one query after `tokens` keys.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <tuple>

#include "sluice/routers/builtin.h"
#include "sluice/runtime/attend/attend.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/kernels/attention_panel/attention_panel.h"
#include "sluice/runtime/kernels/softmax/softmax.h"
#include "sluice/tests/support/attention_data.h"
#ifdef SLUICE_HAVE_DNNL
#include <oneapi/dnnl/dnnl.hpp>
#endif

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int64_t kHeads = 8, kKvHeads = 2, kDim = 64, kChunk = 512;

const AttentionData& Data(int64_t tokens, DType type, int64_t dim = kDim) {
  static std::map<std::tuple<int64_t, int, int64_t>, AttentionData> all;
  auto [it, fresh] = all.try_emplace({tokens, static_cast<int>(type), dim});
  if (fresh) {
    it->second =
        MakeAttentionData(DataKind::kClustered, tokens, tokens, kHeads, kKvHeads, dim, dim, 1);
    if (type != DType::kF32) it->second.Convert(type);
  }
  return it->second;
}
Executor& Threads() {
  const char* n = std::getenv("SLUICE_BENCH_THREADS");  // default: one per CPU
  static std::unique_ptr<Executor> ex = MakeTbbExecutor(n != nullptr ? std::atoi(n) : 0);
  return *ex;
}

struct Routed {
  Routed(const std::string& spec, int64_t tokens, AttendOptions options = {}, int64_t d = kDim,
         int64_t chunk = kChunk)
      : dim(d) {
    router = *BuiltinRouters().attention.Create(spec);
    const AttentionShape s = {.max_queries = chunk,
                              .max_kv = tokens,
                              .heads = static_cast<int>(kHeads),
                              .kv_heads = static_cast<int>(kKvHeads),
                              .head_dim = static_cast<int>(dim),
                              .value_dim = static_cast<int>(dim),
                              .workers = Threads().num_workers()};
    plan = *router->MakePlan(s);
    const AttentionPlanInfo& info = plan->info();
    AttendShape shape = {.max_queries = chunk,
                         .max_kv = tokens,
                         .heads = s.heads,
                         .kv_heads = s.kv_heads,
                         .head_dim = s.head_dim,
                         .value_dim = s.value_dim,
                         .workers = s.workers};
    shape.Cover(info.layout);
    attend = std::make_unique<Attend>(*Attend::Create(shape, options));
    plan_ws.Resize(info.workspace_bytes);
    attend_ws.Resize(attend->workspace_bytes());
    memory.Resize(info.state_bytes);
    storage = *PlanStorage::Create(info.layout);
    o.resize(tokens * kHeads * dim);
  }
  void MakePlan(const AttentionInputs& in) {
    (void)router->Run(*plan, in, state, {plan_ws.workspace(), &Threads()}, *storage);
  }
  // Writes the outputs of tokens from `at` on.
  void RunPlan(const AttentionInputs& in, int64_t at) {
    AttendInputs ai;
    ai.q = in.q;
    ai.k = in.k;
    ai.v = in.v;
    ai.scale = in.scale;
    AttendOutputs out;
    out.o = {o.data() + at * kHeads * dim, in.q.rows, kHeads, dim, kHeads * dim, dim};
    out.counters = &counters;
    (void)attend->Run(storage->plan(), ai, {attend_ws.workspace(), &Threads()}, out);
  }
  // Returns the seconds of running the plans, which stream by chunk.
  double Prefill(const AttentionData& a, bool plan_it, bool run_it) {
    double seconds = 0;
    memory.Clear();
    state = {memory.data(), nullptr, 0};
    const AttentionInputs whole = a.Inputs();
    for (int64_t at = 0; at < a.q_count; at += kChunk) {
      AttentionInputs in = whole;
      in.q.data = whole.q.at(at, 0);
      in.q.rows = kChunk;
      in.q_begin = at;
      in.k.rows = in.v.rows = at + kChunk;
      if (plan_it) MakePlan(in);
      if (!run_it) continue;
      const auto begin = std::chrono::steady_clock::now();
      RunPlan(in, at);
      seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    return seconds;
  }
  // One query after all the others; the plan lists every key.
  void Decode(const AttentionData& a) {
    AttentionInputs in = a.Inputs();
    in.q.data = in.q.at(a.q_count - 1, 0);
    in.q.rows = 1;
    in.q_begin = a.q_count - 1;
    MakePlan(in);
    RunPlan(in, 0);
  }
  // All tokens in one call; returns the seconds that planning took.
  double Image(const AttentionData& a) {
    const AttentionInputs in = a.Inputs();
    const auto begin = std::chrono::steady_clock::now();
    MakePlan(in);
    const std::chrono::duration<double> planning = std::chrono::steady_clock::now() - begin;
    RunPlan(in, 0);
    return planning.count();
  }
  std::unique_ptr<const AttentionRouter> router;
  std::unique_ptr<const AttentionRouter::Plan> plan;
  std::unique_ptr<Attend> attend;
  OwnedWorkspace plan_ws, attend_ws, memory;
  RouterState state;
  std::unique_ptr<PlanStorage> storage;
  int64_t dim;
  std::vector<float> o;
  AttentionCounters counters;
};
void Report(benchmark::State& state, const Routed& r) {
  state.counters["density"] = r.counters.density();
  state.counters["GFLOP/s"] =
      benchmark::Counter(2e-9 * static_cast<double>(r.counters.macs), benchmark::Counter::kIsRate);
}
// Arguments: tokens and head width.
void Dense(benchmark::State& state, DType type, kernels::Bf16Unit unit) {
  AttendOptions options;
  options.bf16 = unit;
  if (unit != kernels::Bf16Unit::kNone && kernels::GetBf16Attention(unit) == nullptr) {
    state.SkipWithError("this CPU lacks the unit");
    return;
  }
  Routed r("dense", state.range(0), options, state.range(1));
  const AttentionData& a = Data(state.range(0), type, state.range(1));
  for (auto _ : state) r.Prefill(a, true, true);
  Report(state, r);
}
void Decode(benchmark::State& state, DType type, kernels::Bf16Unit unit) {
  AttendOptions options;
  options.bf16 = unit;
  if (unit != kernels::Bf16Unit::kNone && kernels::GetBf16Attention(unit) == nullptr) {
    state.SkipWithError("this CPU lacks the unit");
    return;
  }
  Routed r("dense", state.range(0), options, state.range(1));
  const AttentionData& a = Data(state.range(0), type, state.range(1));
  r.memory.Clear();
  r.state = {r.memory.data(), nullptr, 0};
  for (auto _ : state) r.Decode(a);
  Report(state, r);
}
// Block-sparse at a fixed budget; `part` 0: execution only (plans of the last chunk size are
// rebuilt outside the clock).
void Sparse(benchmark::State& state, DType type, const std::string& spec, bool plan_only) {
  Routed r(spec, state.range(0));
  const AttentionData& a = Data(state.range(0), type);
  for (auto _ : state) {
    if (plan_only) {
      r.Prefill(a, true, false);
      continue;
    }
    state.SetIterationTime(r.Prefill(a, true, true));
  }
  if (!plan_only) Report(state, r);
}

// An encoder's attention over a square of `side` x `side` tokens; `planning`: its share.
void Image(benchmark::State& state, const std::string& spec) {
  const int64_t tokens = state.range(0) * state.range(0);
  Routed r(spec, tokens, {}, kDim, tokens);
  const AttentionData& a = Data(tokens, DType::kF32);
  double planning = 0;
  double all = 0;
  for (auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    planning += r.Image(a);
    all += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  Report(state, r);
  state.counters["planning"] = planning / all;
}

// The baselines: per chunk and KV head one product for the logits of all its query heads, a row
// softmax over the visible keys, one product with V. Queries of a KV head are packed [4 * chunk,
// 64] once.
template <class Gemm>
void SoftmaxGemm(benchmark::State& state, Gemm&& gemm) {
  const int64_t tokens = state.range(0), g = kHeads / kKvHeads;
  const AttentionData& a = Data(tokens, DType::kF32);
  std::vector<float> q(g * kChunk * kDim), s(g * kChunk * tokens), out(q.size());
  for (auto _ : state) {
    for (int64_t at = 0; at < tokens; at += kChunk) {
      const int64_t keys = at + kChunk;
      for (int64_t kv = 0; kv < kKvHeads; ++kv) {
        for (int64_t h = 0; h < g; ++h) {
          for (int64_t i = 0; i < kChunk; ++i) {
            const float* from = a.Q().at(at + i, kv * g + h);
            float* to = &q[(h * kChunk + i) * kDim];
            for (int64_t x = 0; x < kDim; ++x) to[x] = from[x] * a.scale();
          }
        }
        const float* k = a.k.data() + kv * kDim;
        const float* v = a.v.data() + kv * kDim;
        gemm(true, g * kChunk, keys, kDim, q.data(), kDim, k, kKvHeads * kDim, s.data(), keys);
        Threads().ParallelFor(g * kChunk, 32, [&](int64_t b, int64_t e, int) {
          for (int64_t r = b; r < e; ++r) {
            float* row = s.data() + r * keys;
            const int64_t seen = at + r % kChunk + 1;
            kernels::Softmax(row, seen);
            std::fill(row + seen, row + keys, 0.0f);
          }
        });
        gemm(false, g * kChunk, kDim, keys, s.data(), keys, v, kKvHeads * kDim, out.data(), kDim);
        benchmark::DoNotOptimize(out.data());
      }
    }
  }
}
#ifdef SLUICE_HAVE_DNNL
void OneDnn(benchmark::State& state) {
  SoftmaxGemm(state, [](bool transpose, int64_t m, int64_t n, int64_t k, const float* a,
                        int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
    dnnl::sgemm('N', transpose ? 'T' : 'N', m, n, k, 1, a, lda, b, ldb, 0, c, ldc);
  });
}
BENCHMARK(OneDnn)->Arg(4096)->Arg(16384)->Unit(benchmark::kMillisecond)->UseRealTime();
#endif
constexpr auto kNone = kernels::Bf16Unit::kNone;
void Prefills(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "dim"})->Unit(benchmark::kMillisecond)->UseRealTime();
  for (int64_t tokens : {4096, 16384}) {
    for (int64_t dim : {64, 128}) b->Args({tokens, dim});
  }
}
void Steps(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "dim"})->Unit(benchmark::kMicrosecond)->UseRealTime();
  for (int64_t dim : {64, 128}) b->Args({16384, dim});
}
BENCHMARK_CAPTURE(Dense, f32, DType::kF32, kNone)->Apply(Prefills);
BENCHMARK_CAPTURE(Dense, f16, DType::kF16, kNone)->Apply(Prefills);
BENCHMARK_CAPTURE(Dense, bf16, DType::kBF16, kNone)->Apply(Prefills);
BENCHMARK_CAPTURE(Dense, bf16_avx512, DType::kBF16, kernels::Bf16Unit::kAvx512)->Apply(Prefills);
BENCHMARK_CAPTURE(Dense, bf16_amx, DType::kBF16, kernels::Bf16Unit::kAmx)->Apply(Prefills);
BENCHMARK_CAPTURE(Decode, f32, DType::kF32, kNone)->Apply(Steps);
BENCHMARK_CAPTURE(Decode, bf16, DType::kBF16, kNone)->Apply(Steps);
BENCHMARK_CAPTURE(Decode, bf16_avx512, DType::kBF16, kernels::Bf16Unit::kAvx512)->Apply(Steps);
BENCHMARK_CAPTURE(Decode, bf16_amx, DType::kBF16, kernels::Bf16Unit::kAmx)->Apply(Steps);
// The published stages: 7 x 7 regions of 64, 16 and 4 tokens, of which 1, 4 and 16 are read.
void Squares(benchmark::internal::Benchmark* b) {
  b->ArgName("side")->Unit(benchmark::kMicrosecond)->UseRealTime();
}
BENCHMARK_CAPTURE(Image, plain, "biformer:k=-2")->Apply(Squares)->Arg(56)->Arg(28)->Arg(14);
BENCHMARK_CAPTURE(Image, k_1, "biformer:k=1")->Apply(Squares)->Arg(56);
BENCHMARK_CAPTURE(Image, k_4, "biformer:k=4")->Apply(Squares)->Arg(56)->Arg(28);
BENCHMARK_CAPTURE(Image, k_16, "biformer:k=16")->Apply(Squares)->Arg(14);
// 16 k tokens, 256 blocks: 13 blocks a row are density 0.10 of the causal pairs.
BENCHMARK_CAPTURE(Sparse, f32_density_0_10, DType::kF32, "mean_pool:k=13,local=1", false)
    ->Arg(16384)
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime();
BENCHMARK_CAPTURE(Sparse, bf16_density_0_10, DType::kBF16, "mean_pool:k=13,local=1", false)
    ->Arg(16384)
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime();
BENCHMARK_CAPTURE(Sparse, f32_planning_mean_pool, DType::kF32, "mean_pool:k=13,local=1", true)
    ->Arg(16384)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(Sparse, f32_planning_hip, DType::kF32, "hip", true)
    ->Arg(16384)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(Sparse, f32_planning_hisa, DType::kF32, "hisa:k=512", true)
    ->Arg(16384)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
}  // namespace
SLUICE_END_NAMESPACE
BENCHMARK_MAIN();
