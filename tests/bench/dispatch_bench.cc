// Dispatch against what it was before: a search of every item for every unit, one unit after the
// other. 4,096 items, top 2, units that do little, so that what is measured is the dispatch itself.
//
// Then a layer of experts: 4,096 tokens over 64 gated feed-forward networks, 8 each. BM_Experts*
// are the whole layer (gate, routing, experts, combination) by Dispatch, by a loop over tokens and
// by a loop over experts, whose products are oneDNN's on all threads; BM_Part* are its parts alone.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/routers/builtin.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/dispatch/dispatch.h"
#include "sluice/runtime/kernels/dot/dot.h"
#include "sluice/runtime/kernels/gather/gather.h"

#ifdef SLUICE_HAVE_DNNL
#include <oneapi/dnnl/dnnl.h>
// Of the OpenMP that oneDNN calls; settings of the calling thread.
extern "C" int omp_get_max_threads();
extern "C" void omp_set_num_threads(int);
#endif

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int64_t kItems = 4096, kTop = 2;

struct Problem {
  int64_t units, width;
  AssignmentBuffer buffer;
  std::vector<float> in, out;
  Problem(int64_t u, int64_t w) : units(u), width(w), in(kItems * w, 0.5f), out(kItems * w) {
    buffer.Reserve(kItems, kItems * kTop);
    Assignment& a = buffer.view();
    a.items = kItems;
    a.units = units;
    for (int64_t i = 0; i < kItems; ++i) {
      const auto key = static_cast<uint64_t>(i);
      const auto first = static_cast<int32_t>(RandomBits({1, key, 0, 0, 0}) % (units - 1));
      const auto rest = static_cast<uint64_t>(units - 1 - first);
      a.unit[2 * i] = first;
      a.unit[2 * i + 1] = first + 1 + static_cast<int32_t>(RandomBits({2, key, 0, 0, 0}) % rest);
      a.weight[2 * i] = a.weight[2 * i + 1] = 0.5f;
      a.row_ptr[i + 1] = 2 * (i + 1);
    }
  }
  MatrixView<const float> In() const { return {in.data(), kItems, width, width}; }
  MatrixView<float> Out() { return {out.data(), kItems, width, width}; }
};

void Scale(const float* in, int64_t n, int64_t unit, float* out) {
  const float by = 1.0f + 0.01f * static_cast<float>(unit);
  for (int64_t i = 0; i < n; ++i) out[i] = by * in[i];
}

// The items of one unit and their weights, looked for in every row.
int64_t ItemsOf(const Assignment& a, int32_t unit, std::vector<int32_t>& items,
                std::vector<float>& weights) {
  int64_t n = 0;
  for (int64_t i = 0; i < a.items; ++i) {
    const auto begin = a.unit.begin() + a.row_ptr[i];
    const auto end = a.unit.begin() + a.row_ptr[i + 1];
    const auto at = std::lower_bound(begin, end, unit);
    if (at == end || *at != unit) continue;
    weights[n] = a.weight[at - a.unit.begin()];
    items[n++] = static_cast<int32_t>(i);
  }
  return n;
}

// The implementation that stood here, without its checks.
struct Before {
  std::vector<int32_t> items = std::vector<int32_t>(kItems);
  std::vector<float> weights = std::vector<float>(kItems), rows_in, rows_out;
  explicit Before(int64_t width) : rows_in(kItems * width), rows_out(kItems * width) {}
  void Run(Problem& p) {
    const Assignment& a = p.buffer.view();
    std::fill(p.out.begin(), p.out.end(), 0.0f);
    for (int64_t u = 0; u < a.units; ++u) {
      const int64_t n = ItemsOf(a, static_cast<int32_t>(u), items, weights);
      if (n == 0) continue;
      kernels::GatherRows(p.in.data(), p.width, items.data(), n, p.width, rows_in.data());
      Scale(rows_in.data(), n * p.width, u, rows_out.data());
      kernels::ScatterAddRows(rows_out.data(), items.data(), weights.data(), n, p.width,
                              p.out.data(), p.width);
    }
  }
};

void BM_DispatchBefore(benchmark::State& state) {
  Problem p(state.range(0), state.range(1));
  Before before(p.width);
  for (auto _ : state) before.Run(p);
}
void BM_Dispatch(benchmark::State& state) {
  Problem p(state.range(0), state.range(1));
  const int threads = static_cast<int>(state.range(2));
  const auto executor = MakeTbbExecutor(threads);
  const auto d = Dispatch::Create({.max_items = kItems,
                                   .in_width = p.width,
                                   .out_width = p.width,
                                   .max_entries = kItems * kTop,
                                   .max_units = p.units,
                                   .workers = threads});
  OwnedWorkspace memory(d->workspace_bytes());
  const auto describe = [](int64_t) -> UnitInfo {
    return {UnitKind::kHost, 1.0, Concurrency::kRows};
  };
  const auto run = [](const UnitRows& r, const RunContext&) {
    Scale(r.in.data, r.in.rows * r.in.cols, r.unit, r.out.data);
    return absl::OkStatus();
  };
  for (auto _ : state) {
    const absl::Status s = d->Run(p.buffer.view(), Combine::kWeightedSum, p.In(), p.Out(),
                                  {memory.workspace(), executor.get()}, describe, run);
    if (!s.ok()) return state.SkipWithError(std::string(s.message()).c_str());
  }
}
BENCHMARK(BM_DispatchBefore)->ArgsProduct({{8, 64}, {64, 512}})->ArgNames({"units", "width"});
BENCHMARK(BM_Dispatch)
    ->ArgsProduct({{8, 64}, {64, 512}, {1, 2}})
    ->ArgNames({"units", "width", "threads"})
    ->UseRealTime();

#ifdef SLUICE_HAVE_DNNL
constexpr int64_t kExperts = 64;
constexpr int64_t kOfExperts = 8;
constexpr int64_t kRowsAtOnce = 256;  // of one expert's call: what it computes stays in the cache

// y [rows, columns] = x [rows, depth] W^T by oneDNN, on `threads` threads of its OpenMP.
void MatMul(const float* x, const float* w, int64_t rows, int64_t columns, int64_t depth, float* y,
            int threads) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  dnnl_sgemm('N', 'T', rows, columns, depth, 1, x, depth, w, depth, 0, y, columns);
  omp_set_num_threads(before);
}

// Tokens, a gate and the experts' weights, all normal.
struct Layer {
  int64_t width;
  int64_t ffn;
  int threads;
  std::unique_ptr<Executor> executor;
  std::vector<float> tokens;
  std::vector<float> gate;
  std::vector<float> gate_up;  // [experts, 2 ffn, width]
  std::vector<float> down;     // [experts, width, ffn]
  std::vector<float> logits = std::vector<float>(kItems * kExperts);
  std::vector<float> out;
  std::unique_ptr<const Router> router;
  std::unique_ptr<const Router::Plan> plan;
  OwnedWorkspace memory;
  AssignmentBuffer buffer;

  Layer(int64_t w, int n)
      : width(w), ffn(w / 2), threads(n), executor(MakeTbbExecutor(n)), out(kItems * w) {
    const auto fill = [](std::vector<float>& x, int64_t size, uint64_t seed, double scale) {
      constexpr int64_t kRepeats = 1 << 18;  // drawing all of them would take longer than measuring
      x.resize(static_cast<size_t>(size));
      for (int64_t i = 0; i < std::min(size, kRepeats); ++i)
        x[i] = static_cast<float>(scale *
                                  (RandomUniform({seed, 0, 0, 0, static_cast<uint64_t>(i)}) - 0.5));
      for (int64_t i = kRepeats; i < size; ++i) x[i] = x[i - kRepeats + 1];
    };
    fill(tokens, kItems * width, 1, 2);
    fill(gate, kExperts * width, 2, 0.2);
    fill(gate_up, kExperts * 2 * ffn * width, 3, 0.1);
    fill(down, kExperts * width * ffn, 4, 0.1);
    router = *BuiltinRouters().routers.Create(absl::StrCat("expert/top_k:k=", kOfExperts));
    plan = *router->MakePlan({.items = kItems, .units = kExperts, .workers = n});
    memory.Resize(plan->info().workspace_bytes);
    buffer.Reserve(kItems, plan->info().max_entries);
  }
  MatrixView<const float> In() const { return {tokens.data(), kItems, width, width}; }
  MatrixView<float> Out() { return {out.data(), kItems, width, width}; }
  const Assignment& a() const { return buffer.view(); }

  void Route() {
    MatMul(tokens.data(), gate.data(), kItems, kExperts, width, logits.data(), threads);
    RouteInputs in;
    in.items = kItems;
    in.scores = {logits.data(), kItems, kExperts, kExperts};
    const absl::Status s =
        router->Run(*plan, in, {memory.workspace(), executor.get()}, buffer.view());
    if (!s.ok()) std::abort();
  }
  static void Activate(const float* up, int64_t rows, int64_t ffn, float* y) {
    for (int64_t r = 0; r < rows; ++r) {
      const float* gate = up + r * 2 * ffn;
      for (int64_t j = 0; j < ffn; ++j)
        y[r * ffn + j] = gate[j] / (1.0f + std::exp(-gate[j])) * gate[ffn + j];
    }
  }
  // scratch: [rows, 3 ffn].
  void Expert(int64_t expert, const float* x, int64_t rows, float* y, float* scratch,
              int on_threads) const {
    float* act = scratch + rows * 2 * ffn;
    MatMul(x, &gate_up[expert * 2 * ffn * width], rows, 2 * ffn, width, scratch, on_threads);
    Activate(scratch, rows, ffn, act);
    MatMul(act, &down[expert * width * ffn], rows, width, ffn, y, on_threads);
  }
  absl::StatusOr<Dispatch> MakeDispatch() const {
    return Dispatch::Create(
        {.max_items = kItems,
         .in_width = width,
         .out_width = width,
         .max_entries = kItems * kOfExperts,
         .max_units = kExperts,
         .unit_workspace_bytes = static_cast<size_t>(kRowsAtOnce * 3 * ffn) * sizeof(float),
         .workers = threads});
  }
  absl::Status Run(const Dispatch& d, const OwnedWorkspace& room, Dispatch::RunUnit run) {
    const auto describe = [](int64_t) -> UnitInfo {
      return {UnitKind::kHost, 1.0 / kExperts, Concurrency::kUnits, kRowsAtOnce};
    };
    return d.Run(a(), Combine::kWeightedSum, In(), Out(), {room.workspace(), executor.get()},
                 describe, run);
  }
};

void BM_Experts(benchmark::State& state) {
  Layer layer(state.range(0), static_cast<int>(state.range(1)));
  const auto d = layer.MakeDispatch();
  OwnedWorkspace room(d->workspace_bytes());
  const auto run = [&](const UnitRows& r, const RunContext& ctx) {
    layer.Expert(r.unit, r.in.data, r.in.rows, r.out.data, ctx.workspace.At<float>(0), 1);
    return absl::OkStatus();
  };
  for (auto _ : state) {
    layer.Route();
    const absl::Status s = layer.Run(*d, room, run);
    if (!s.ok()) return state.SkipWithError(std::string(s.message()).c_str());
  }
}
// Every token's experts one after the other, tokens beside each other.
void BM_ExpertsByToken(benchmark::State& state) {
  Layer layer(state.range(0), static_cast<int>(state.range(1)));
  const int64_t width = layer.width;
  const int64_t ffn = layer.ffn;
  std::vector<float> scratch(layer.threads * 3 * ffn);
  const auto token = [&](int64_t i, float* up) {
    const Assignment& a = layer.a();
    float* y = &layer.out[i * width];
    std::fill_n(y, width, 0.0f);
    for (int64_t e = a.row_ptr[i]; e < a.row_ptr[i + 1]; ++e) {
      const float* x = &layer.tokens[i * width];
      const float* w = &layer.gate_up[a.unit[e] * 2 * ffn * width];
      for (int64_t j = 0; j < 2 * ffn; ++j)
        up[j] = kernels::Dot(x, w + j * width, DType::kF32, width);
      Layer::Activate(up, 1, ffn, up + 2 * ffn);
      const float* down = &layer.down[a.unit[e] * width * ffn];
      for (int64_t c = 0; c < width; ++c)
        y[c] += a.weight[e] * kernels::Dot(up + 2 * ffn, down + c * ffn, DType::kF32, ffn);
    }
  };
  for (auto _ : state) {
    layer.Route();
    layer.executor->ParallelFor(kItems, 16, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) token(i, &scratch[worker * 3 * ffn]);
    });
  }
}
// One expert after the other: its tokens are looked for, gathered, multiplied on all threads, and
// added to the result.
void BM_ExpertsByExpert(benchmark::State& state) {
  Layer layer(state.range(0), static_cast<int>(state.range(1)));
  const int64_t width = layer.width;
  std::vector<int32_t> items(kItems);
  std::vector<float> weights(kItems);
  std::vector<float> in(kItems * width);
  std::vector<float> out(kItems * width);
  std::vector<float> scratch(kItems * 3 * layer.ffn);
  for (auto _ : state) {
    layer.Route();
    std::fill(layer.out.begin(), layer.out.end(), 0.0f);
    for (int32_t u = 0; u < kExperts; ++u) {
      const int64_t n = ItemsOf(layer.a(), u, items, weights);
      if (n == 0) continue;
      kernels::GatherRows(layer.tokens.data(), width, items.data(), n, width, in.data());
      layer.Expert(u, in.data(), n, out.data(), scratch.data(), layer.threads);
      kernels::ScatterAddRows(out.data(), items.data(), weights.data(), n, width, layer.out.data(),
                              width);
    }
  }
}

// The gate's product and the router.
void BM_PartRouting(benchmark::State& state) {
  Layer layer(state.range(0), static_cast<int>(state.range(1)));
  for (auto _ : state) layer.Route();
}
// Dispatch with experts that do nothing: gathering and combining.
void BM_PartPermutation(benchmark::State& state) {
  Layer layer(state.range(0), static_cast<int>(state.range(1)));
  layer.Route();
  const auto d = layer.MakeDispatch();
  OwnedWorkspace room(d->workspace_bytes());
  const auto nothing = [](const UnitRows&, const RunContext&) { return absl::OkStatus(); };
  for (auto _ : state) {
    const absl::Status s = layer.Run(*d, room, nothing);
    if (!s.ok()) return state.SkipWithError(std::string(s.message()).c_str());
  }
}
// The experts alone, in Dispatch's pieces, on rows that lie ready.
void BM_PartProducts(benchmark::State& state) {
  Layer layer(state.range(0), static_cast<int>(state.range(1)));
  layer.Route();
  std::vector<int64_t> begin(kExperts + 1);
  for (int64_t e = 0; e < layer.a().entries(); ++e) ++begin[layer.a().unit[e] + 1];
  for (int64_t u = 0; u < kExperts; ++u) begin[u + 1] += begin[u];
  const std::vector<float> in(layer.a().entries() * layer.width, 0.5f);
  std::vector<float> out(in.size());
  std::vector<float> scratch(layer.threads * kRowsAtOnce * 3 * layer.ffn);
  for (auto _ : state) {
    layer.executor->ParallelFor(kExperts, 1, [&](int64_t b, int64_t e, int worker) {
      for (int64_t u = b; u < e; ++u) {
        for (int64_t r = begin[u]; r < begin[u + 1]; r += kRowsAtOnce)
          layer.Expert(u, &in[r * layer.width], std::min(kRowsAtOnce, begin[u + 1] - r),
                       &out[r * layer.width], &scratch[worker * kRowsAtOnce * 3 * layer.ffn], 1);
      }
    });
  }
}
void Layers(benchmark::internal::Benchmark* b) {
  b->ArgsProduct({{512, 1024, 2048}, {1, 2}})->ArgNames({"width", "threads"})->UseRealTime();
  // The CPU column counts all threads: other work on the machine lengthens it least.
  b->MeasureProcessCPUTime()->Unit(benchmark::kMillisecond);
}
BENCHMARK(BM_Experts)->Apply(Layers);
BENCHMARK(BM_ExpertsByToken)->Apply(Layers);
BENCHMARK(BM_ExpertsByExpert)->Apply(Layers);
BENCHMARK(BM_PartRouting)->Apply(Layers);
BENCHMARK(BM_PartPermutation)->Apply(Layers);
BENCHMARK(BM_PartProducts)->Apply(Layers);
#endif
}  // namespace
SLUICE_END_NAMESPACE
BENCHMARK_MAIN();
