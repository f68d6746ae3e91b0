// Dispatch against what it was before: a search of every item for every unit, one unit after the
// other. 4,096 items, top 2, units that do little, so that what is measured is the dispatch itself.
//
// Then a layer of experts: 4,096 tokens over 64 gated feed-forward networks, 8 each. BM_Experts*
// are the whole layer (gate, routing, experts, combination): by RunAdding with weights packed once,
// by Run with oneDNN's products, by a loop over tokens, and by a loop over experts whose products
// are oneDNN's (blas:0) or OpenBLAS's (blas:1; its library is named by SLUICE_OPENBLAS) on all
// threads. BM_Part* are its parts alone; BM_Ratios has the ratios that matter, and on one thread
// how near its sides are to what the core can multiply. All gate their halves by the same kernel.
#include <benchmark/benchmark.h>
#include <dlfcn.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/routers/builtin.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/dispatch/dispatch.h"
#include "sluice/runtime/kernels/dot/dot.h"
#include "sluice/runtime/kernels/gather/gather.h"
#include "sluice/runtime/kernels/packed_gemm/packed_gemm.h"

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

// Of RunAdding: every worker's share, so that it reads an expert's weights once.
int64_t TileItems(int threads) { return kItems / threads; }

// y [rows, columns] = x [rows, depth] W^T by oneDNN, on `threads` threads of its OpenMP.
void MatMul(const float* x, const float* w, int64_t rows, int64_t columns, int64_t depth, float* y,
            int threads) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  dnnl_sgemm('N', 'T', rows, columns, depth, 1, x, depth, w, depth, 0, y, columns);
  omp_set_num_threads(before);
}

// OpenBLAS, where SLUICE_OPENBLAS names its library: loaded when asked for, so that nothing else
// that is linked meets its symbols.
struct OpenBlas {
  using Sgemm = void (*)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                         const float* a, int lda, const float* b, int ldb, float beta, float* c,
                         int ldc);
  Sgemm sgemm = nullptr;
  void (*set_num_threads)(int) = nullptr;
  std::string core;

  static const OpenBlas& Get() {
    static const OpenBlas blas = Load();
    return blas;
  }
  void MatMul(const float* x, const float* w, int64_t rows, int64_t columns, int64_t depth,
              float* y) const {
    constexpr int kRowMajor = 101;
    constexpr int kNoTranspose = 111;
    constexpr int kTranspose = 112;
    const auto m = static_cast<int>(rows);
    const auto n = static_cast<int>(columns);
    const auto k = static_cast<int>(depth);
    sgemm(kRowMajor, kNoTranspose, kTranspose, m, n, k, 1, x, k, w, k, 0, y, n);
  }

 private:
  static OpenBlas Load() {
    OpenBlas b;
    const char* path = std::getenv("SLUICE_OPENBLAS");
    void* library = path == nullptr ? nullptr : dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return b;
    b.sgemm = reinterpret_cast<Sgemm>(dlsym(library, "cblas_sgemm"));
    b.set_num_threads = reinterpret_cast<void (*)(int)>(dlsym(library, "openblas_set_num_threads"));
    const auto core = reinterpret_cast<const char* (*)()>(dlsym(library, "openblas_get_corename"));
    b.core = core == nullptr ? "unknown" : core();
    return b;
  }
};

// Whose products a loop uses.
enum class Blas : int { kOneDnn, kOpenBlas };

// Tokens, a gate and the experts' weights, all normal.
struct Layer {
  int64_t width;
  int64_t ffn;
  int threads;
  Blas blas;
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

  Layer(int64_t w, int n, Blas with = Blas::kOneDnn)
      : width(w),
        ffn(w / 2),
        threads(n),
        blas(with),
        executor(MakeTbbExecutor(n)),
        out(kItems * w) {
    if (blas == Blas::kOpenBlas && OpenBlas::Get().sgemm != nullptr)
      OpenBlas::Get().set_num_threads(n);
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
    Multiply(tokens.data(), gate.data(), kItems, kExperts, width, logits.data(), threads);
    Choose();
  }
  void Multiply(const float* x, const float* w, int64_t rows, int64_t columns, int64_t depth,
                float* y, int on_threads) const {
    if (blas == Blas::kOpenBlas) {
      OpenBlas::Get().MatMul(x, w, rows, columns, depth, y);
    } else {
      MatMul(x, w, rows, columns, depth, y, on_threads);
    }
  }
  void Choose() {
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
      kernels::GateRows(gate, gate + ffn, ffn, y + r * ffn);
    }
  }
  // scratch: [rows, 3 ffn].
  void Expert(int64_t expert, const float* x, int64_t rows, float* y, float* scratch,
              int on_threads) const {
    float* act = scratch + rows * 2 * ffn;
    Multiply(x, &gate_up[expert * 2 * ffn * width], rows, 2 * ffn, width, scratch, on_threads);
    Activate(scratch, rows, ffn, act);
    Multiply(act, &down[expert * width * ffn], rows, width, ffn, y, on_threads);
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

// The weights packed, and the layer made of them.
struct PackedLayer : Layer {
  OwnedWorkspace packed;  // aligned
  float* packed_gate;
  float* packed_up;    // per expert: its gate's half, then the other
  float* packed_down;  // per expert
  Dispatch dispatch;
  OwnedWorkspace room;

  PackedLayer(int64_t w, int n) : Layer(w, n), dispatch(*MakeAdding()) {
    room.Resize(dispatch.workspace_bytes());
    const int64_t half = kernels::PackedFloats(ffn, width);
    const int64_t rest = kernels::PackedFloats(width, ffn);
    WorkspaceLayout layout;
    const size_t at_gate = layout.Add<float>(kernels::PackedFloats(kExperts, width));
    const size_t at_up = layout.Add<float>(kExperts * 2 * half);
    const size_t at_down = layout.Add<float>(kExperts * rest);
    packed.Resize(layout.bytes());
    packed_gate = packed.workspace().At<float>(at_gate);
    packed_up = packed.workspace().At<float>(at_up);
    packed_down = packed.workspace().At<float>(at_down);
    kernels::PackRows(gate.data(), width, kExperts, width, packed_gate);
    for (int64_t e = 0; e < 2 * kExperts; ++e)
      kernels::PackRows(&gate_up[e * ffn * width], width, ffn, width, &packed_up[e * half]);
    for (int64_t e = 0; e < kExperts; ++e)
      kernels::PackRows(&down[e * width * ffn], ffn, width, ffn, &packed_down[e * rest]);
  }
  const float* Gate(int64_t expert) const {
    return &packed_up[2 * expert * kernels::PackedFloats(ffn, width)];
  }
  const float* Up(int64_t expert) const { return Gate(expert) + kernels::PackedFloats(ffn, width); }
  const float* Down(int64_t expert) const {
    return &packed_down[expert * kernels::PackedFloats(width, ffn)];
  }
  void RoutePacked() {
    executor->ParallelFor(kItems, 256, [&](int64_t begin, int64_t end, int) {
      kernels::GemmPacked({&tokens[begin * width], width}, packed_gate, end - begin, kExperts,
                          width, &logits[begin * kExperts], kExperts);
    });
    Choose();
  }
  absl::StatusOr<Dispatch> MakeAdding() const {
    return Dispatch::Create(
        {.max_items = kItems,
         .in_width = width,
         .out_width = width,
         .max_entries = kItems * kOfExperts,
         .max_units = kExperts,
         .unit_workspace_bytes = static_cast<size_t>(kRowsAtOnce * ffn) * sizeof(float),
         .workers = threads,
         .adds = true,
         .tile_items = TileItems(threads)});
  }
  void Add() {
    const auto describe = [](int64_t) -> UnitInfo {
      return {UnitKind::kHost, 1.0 / kExperts, Concurrency::kRows, kRowsAtOnce};
    };
    const auto add = [&](const UnitShare& s, const RunContext& ctx) {
      float* h = ctx.workspace.At<float>(0);
      const auto n = static_cast<int64_t>(s.items.size());
      kernels::GatedPacked({s.in.data, s.in.row_stride, s.items.data()}, Gate(s.unit), Up(s.unit),
                           n, ffn, width, h, ffn);
      kernels::GemmPackedAdd({h, ffn}, Down(s.unit), n, width, ffn, s.items.data(), s.weight.data(),
                             s.out.data, s.out.row_stride);
      return absl::OkStatus();
    };
    const absl::Status s = dispatch.RunAdding(a(), Combine::kWeightedSum, In(), Out(),
                                              {room.workspace(), executor.get()}, describe, add);
    if (!s.ok()) std::abort();
  }
  void Once() {
    RoutePacked();
    Add();
  }
};
void BM_ExpertsPacked(benchmark::State& state) {
  PackedLayer layer(state.range(0), static_cast<int>(state.range(1)));
  for (auto _ : state) layer.Once();
}

// The experts of a PackedLayer alone, in pieces as there, on rows that lie ready, into memory that
// stays in the cache: what the whole takes longer, less the routing, is the permutation.
struct PackedProducts {
  PackedLayer& layer;
  int64_t tile = TileItems(layer.threads);
  std::vector<int64_t> rows = std::vector<int64_t>(kItems / tile * kExperts);
  std::vector<float> in;
  std::vector<float> scratch;

  explicit PackedProducts(PackedLayer& l)
      : layer(l), in(kItems * l.width, 0.5f), scratch(l.threads * kRowsAtOnce * (l.ffn + l.width)) {
    layer.RoutePacked();
    for (int64_t i = 0; i < kItems; ++i) {
      for (int64_t e = layer.a().row_ptr[i]; e < layer.a().row_ptr[i + 1]; ++e)
        ++rows[i / tile * kExperts + layer.a().unit[e]];
    }
  }
  void Once() {
    layer.executor->ParallelFor(kItems / tile, 1, [&](int64_t b, int64_t e, int worker) {
      for (int64_t t = b * kExperts; t < e * kExperts; ++t) {
        for (int64_t r = 0; r < rows[t]; r += kRowsAtOnce)
          Expert(t % kExperts, r, std::min(kRowsAtOnce, rows[t] - r), worker);
      }
    });
  }
  void Expert(int64_t expert, int64_t row, int64_t n, int worker) {
    const int64_t width = layer.width;
    const int64_t ffn = layer.ffn;
    float* h = &scratch[worker * kRowsAtOnce * (ffn + width)];
    kernels::GatedPacked({&in[(worker * tile + row) * width], width}, layer.Gate(expert),
                         layer.Up(expert), n, ffn, width, h, ffn);
    kernels::GemmPacked({h, ffn}, layer.Down(expert), n, width, ffn, h + kRowsAtOnce * ffn, width);
  }
};
void BM_PartPackedProducts(benchmark::State& state) {
  PackedLayer layer(state.range(0), static_cast<int>(state.range(1)));
  PackedProducts products(layer);
  for (auto _ : state) products.Once();
}

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
struct ByToken : Layer {
  std::vector<float> scratch;

  ByToken(int64_t w, int n) : Layer(w, n), scratch(n * 3 * ffn) {}
  void Token(int64_t i, float* up) {
    float* y = &out[i * width];
    std::fill_n(y, width, 0.0f);
    for (int64_t e = a().row_ptr[i]; e < a().row_ptr[i + 1]; ++e) {
      const float* x = &tokens[i * width];
      const float* w = &gate_up[a().unit[e] * 2 * ffn * width];
      for (int64_t j = 0; j < 2 * ffn; ++j)
        up[j] = kernels::Dot(x, w + j * width, DType::kF32, width);
      Activate(up, 1, ffn, up + 2 * ffn);
      const float* d = &down[a().unit[e] * width * ffn];
      for (int64_t c = 0; c < width; ++c)
        y[c] += a().weight[e] * kernels::Dot(up + 2 * ffn, d + c * ffn, DType::kF32, ffn);
    }
  }
  void Once() {
    Route();
    executor->ParallelFor(kItems, 16, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) Token(i, &scratch[worker * 3 * ffn]);
    });
  }
};
void BM_ExpertsByToken(benchmark::State& state) {
  ByToken layer(state.range(0), static_cast<int>(state.range(1)));
  for (auto _ : state) layer.Once();
}
// One expert after the other: its tokens are looked for, gathered, multiplied on all threads, and
// added to the result.
struct ByExpert : Layer {
  std::vector<int32_t> items = std::vector<int32_t>(kItems);
  std::vector<float> weights = std::vector<float>(kItems);
  std::vector<float> rows_in;
  std::vector<float> rows_out;
  std::vector<float> scratch;

  ByExpert(int64_t w, int n, Blas with)
      : Layer(w, n, with), rows_in(kItems * w), rows_out(kItems * w), scratch(kItems * 3 * ffn) {}
  void Once() {
    Route();
    std::fill(out.begin(), out.end(), 0.0f);
    for (int32_t u = 0; u < kExperts; ++u) {
      const int64_t n = ItemsOf(a(), u, items, weights);
      if (n == 0) continue;
      kernels::GatherRows(tokens.data(), width, items.data(), n, width, rows_in.data());
      Expert(u, rows_in.data(), n, rows_out.data(), scratch.data(), threads);
      kernels::ScatterAddRows(rows_out.data(), items.data(), weights.data(), n, width, out.data(),
                              width);
    }
  }
};
// The products of a ByExpert alone, on rows that lie ready.
struct ByExpertProducts {
  ByExpert& loop;
  std::vector<int64_t> rows = std::vector<int64_t>(kExperts);

  explicit ByExpertProducts(ByExpert& l) : loop(l) {
    loop.Once();
    for (int64_t e = 0; e < loop.a().entries(); ++e) ++rows[loop.a().unit[e]];
  }
  void Once() {
    const int64_t width = loop.width;
    const int64_t ffn = loop.ffn;
    for (int64_t u = 0; u < kExperts; ++u) {
      loop.Multiply(loop.rows_in.data(), &loop.gate_up[u * 2 * ffn * width], rows[u], 2 * ffn,
                    width, loop.scratch.data(), loop.threads);
      loop.Multiply(loop.scratch.data(), &loop.down[u * width * ffn], rows[u], width, ffn,
                    loop.rows_out.data(), loop.threads);
    }
  }
};
// False: `state` says that there is no such library.
bool HasBlas(Blas blas, benchmark::State& state) {
  if (blas == Blas::kOneDnn) return true;
  if (OpenBlas::Get().sgemm == nullptr) {
    state.SkipWithError("SLUICE_OPENBLAS names no library of OpenBLAS");
    return false;
  }
  state.SetLabel(OpenBlas::Get().core);
  return true;
}
void BM_ExpertsByExpert(benchmark::State& state) {
  const Blas blas = static_cast<Blas>(state.range(2));
  if (!HasBlas(blas, state)) return;
  ByExpert layer(state.range(0), static_cast<int>(state.range(1)), blas);
  for (auto _ : state) layer.Once();
}

// Wall clock and the processor time of all threads, of one call.
struct Taken {
  double wall, cpu;
};
template <class Layer>
Taken Time(Layer& layer) {
  timespec at[4];
  clock_gettime(CLOCK_MONOTONIC, &at[0]);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at[1]);
  layer.Once();
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at[2]);
  clock_gettime(CLOCK_MONOTONIC, &at[3]);
  const auto seconds = [](const timespec& from, const timespec& to) {
    return static_cast<double>(to.tv_sec - from.tv_sec) +
           1e-9 * static_cast<double>(to.tv_nsec - from.tv_nsec);
  };
  return {seconds(at[0], at[3]), seconds(at[1], at[2])};
}
// Multiply-adds that one thread does of registers, where this knows the CPU's; else null.
using MultiplyAdds = int64_t (*)(int64_t rounds);
#if defined(__x86_64__) && defined(__GNUC__)
template <class V>
__attribute__((always_inline)) inline int64_t MultiplyAddsOf(int64_t rounds) {
  constexpr int64_t kSums = 12;  // of 16 registers; enough to hide what one takes
  V sums[kSums] = {};
  const V by = V{} + 0.999f;
  const V add = V{} + 1e-3f;
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (V& sum : sums) {
      sum = sum * by + add;
      asm volatile("" : "+v"(sum));
    }
  }
  return rounds * kSums * static_cast<int64_t>(sizeof(V) / sizeof(float));
}
using Floats8 = float __attribute__((vector_size(32)));
using Floats16 = float __attribute__((vector_size(64)));
__attribute__((target("avx2,fma"))) int64_t MultiplyAdds256(int64_t rounds) {
  return MultiplyAddsOf<Floats8>(rounds);
}
__attribute__((target("avx512f"))) int64_t MultiplyAdds512(int64_t rounds) {
  return MultiplyAddsOf<Floats16>(rounds);
}
MultiplyAdds FastestMultiplyAdds() {
  if (__builtin_cpu_supports("avx512f")) return MultiplyAdds512;
  if (__builtin_cpu_supports("fma")) return MultiplyAdds256;
  return nullptr;
}
#else
MultiplyAdds FastestMultiplyAdds() { return nullptr; }
#endif
// What one thread could multiply now, in multiply-adds a second of processor time; 0: unknown.
struct Peak {
  MultiplyAdds run = FastestMultiplyAdds();
  int64_t done = 0;
  void Once() { done = run(2'000'000); }
  double Read() {
    if (run == nullptr) return 0;
    const Taken taken = Time(*this);
    return static_cast<double>(done) / taken.cpu;
  }
};
double Median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}
// The whole against its products alone and against the loop over experts, one call of each in turn:
// medians of the ratios, which what else runs on the machine moves less than the times. extra: what
// routing and permutation add to the products; loop: how many times as long the loop takes. On one
// thread also, of the multiply-adds that the core can do beside them: what the whole, the loop and
// the loop's products alone reach. No dispatch is faster than 1 / of_peak_loop times the loop.
void BM_Ratios(benchmark::State& state) {
  const Blas blas = static_cast<Blas>(state.range(2));
  if (!HasBlas(blas, state)) return;
  PackedLayer whole(state.range(0), static_cast<int>(state.range(1)));
  PackedProducts products(whole);
  ByExpert loop(state.range(0), static_cast<int>(state.range(1)), blas);
  ByExpertProducts loop_products(loop);
  Peak peak;
  const double experts = 3.0 * kItems * kOfExperts * loop.width * loop.ffn;
  const double all = experts + 1.0 * kItems * kExperts * loop.width;
  std::map<std::string, std::vector<double>> figures;
  for (auto _ : state) {
    const double first = peak.Read();
    const Taken p = Time(products);
    const Taken w = Time(whole);
    const Taken l = Time(loop);
    const Taken b = Time(loop_products);
    figures["extra"].push_back(w.wall / p.wall - 1);
    figures["extra_cpu"].push_back(w.cpu / p.cpu - 1);
    figures["loop"].push_back(l.wall / w.wall);
    figures["loop_cpu"].push_back(l.cpu / w.cpu);
    const double most = std::max(first, peak.Read());
    if (loop.threads > 1 || most == 0) continue;
    figures["peak_gflops"].push_back(2e-9 * most);
    figures["of_peak"].push_back(all / w.cpu / most);
    figures["of_peak_loop"].push_back(all / l.cpu / most);
    figures["of_peak_blas"].push_back(experts / b.cpu / most);
  }
  for (const auto& [name, values] : figures) state.counters[name] = Median(values);
}

// The gate's product and the router.
void BM_PartRouting(benchmark::State& state) {
  PackedLayer layer(state.range(0), static_cast<int>(state.range(1)));
  for (auto _ : state) layer.RoutePacked();
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
void Measured(benchmark::internal::Benchmark* b) {
  b->UseRealTime();
  // The CPU column counts all threads: other work on the machine lengthens it least.
  b->MeasureProcessCPUTime()->Unit(benchmark::kMillisecond);
}
void Layers(benchmark::internal::Benchmark* b) {
  b->ArgsProduct({{512, 1024, 2048}, {1, 2}})->ArgNames({"width", "threads"});
  Measured(b);
}
void LoopsOverExperts(benchmark::internal::Benchmark* b) {
  b->ArgsProduct({{512, 1024, 2048}, {1, 2}, {0, 1}})->ArgNames({"width", "threads", "blas"});
  Measured(b);
}
BENCHMARK(BM_ExpertsPacked)->Apply(Layers);
BENCHMARK(BM_Experts)->Apply(Layers);
BENCHMARK(BM_ExpertsByToken)->Apply(Layers);
BENCHMARK(BM_ExpertsByExpert)->Apply(LoopsOverExperts);
BENCHMARK(BM_Ratios)
    ->ArgsProduct({{512, 1024}, {1, 2}, {0, 1}})
    ->ArgNames({"width", "threads", "blas"})
    ->Iterations(11)
    ->Unit(benchmark::kMillisecond);
BENCHMARK(BM_PartRouting)->Apply(Layers);
BENCHMARK(BM_PartPermutation)->Apply(Layers);
BENCHMARK(BM_PartProducts)->Apply(Layers);
BENCHMARK(BM_PartPackedProducts)->Apply(Layers);
#endif
}  // namespace
SLUICE_END_NAMESPACE
BENCHMARK_MAIN();
