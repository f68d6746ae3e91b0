// Products with a matrix most of whose weights are gone, beside the dense product in the same run:
// kernels::Dot row by row (one row of x) and oneDNN's sgemm in the pieces of the reference host.
// The three take turns, so that a loaded machine slows all of them; times are medians of 7.
//
// BM_Product: one density. `speedup` is against the faster dense one. BM_BreakEven: the greatest
// density, in steps of 0.05 from 1 down, at which the sparse product is the fastest.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <vector>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/kernels/dot/dot.h"
#include "sluice/runtime/kernels/sparse_linear/sparse_matrix.h"

#ifdef SLUICE_HAVE_DNNL
#include <oneapi/dnnl/dnnl.h>
// Of the OpenMP that oneDNN calls; settings of the calling thread.
extern "C" int omp_get_max_threads();
extern "C" void omp_set_num_threads(int);
#endif

SLUICE_BEGIN_NAMESPACE
namespace {
using kernels::SparsePattern;
constexpr int kRuns = 7;
constexpr int64_t kRowPiece = 128;
constexpr int64_t kColumnPiece = 256;

struct Pattern {
  const char* name;
  SparseLayout layout;
};
const Pattern kPatterns[] = {
    {"bitmap f32", {}},
    {"bitmap bf16", {.type = DType::kBF16}},
    {"2:4 f32", {.pattern = SparsePattern::kNofM}},
    {"4:8 f32", {.pattern = SparsePattern::kNofM, .n = 4, .m = 8}},
    {"block 16x16 f32", {.pattern = SparsePattern::kBlock}},
    {"block 1x16 f32", {.pattern = SparsePattern::kBlock, .block_rows = 1}},
};

struct Problem {
  int64_t rows, cols, n;
  int threads;
  std::unique_ptr<Executor> executor;
  std::vector<float> w, x, y;

  Problem(int64_t r, int64_t c, int64_t batch, int t)
      : rows(r), cols(c), n(batch), threads(t), executor(MakeTbbExecutor(t)), y(batch * r) {
    const auto fill = [](std::vector<float>& v, int64_t size, uint64_t seed) {
      constexpr int64_t kRepeats = 1 << 18;  // drawing all of them takes longer than measuring
      v.resize(static_cast<size_t>(size));
      for (int64_t i = 0; i < size; ++i)
        v[i] = i < kRepeats ? static_cast<float>(RandomUniform({seed, 0, 0, 0, uint64_t(i)}) + 0.01)
                            : v[i - kRepeats];
    };
    fill(w, rows * cols, 1);
    fill(x, n * cols, 2);
  }
  MatrixView<const float> W() const { return {w.data(), rows, cols, cols}; }

  // Which weights stay, by their pattern.
  Mask Kept(const SparseLayout& l, double density) const {
    const bool blocks = l.pattern == SparsePattern::kBlock;
    const int64_t h = blocks ? l.block_rows : 1;
    const int64_t v = blocks ? l.block_cols : 1;
    Mask mask(rows, cols, false);
    for (int64_t r = 0; r < rows; ++r) {
      uint64_t random = 0;
      for (int64_t c = 0; c < cols; ++c) {
        if (l.pattern == SparsePattern::kNofM) {  // a run of N that begins anywhere, round about
          if (c % l.m == 0) random = HashOf(r, c) % static_cast<uint64_t>(l.m);
          mask.Set(r, c, (static_cast<uint64_t>(c) + random) % l.m < static_cast<uint64_t>(l.n));
        } else {
          const uint64_t hash = HashOf(r / h, c / v);
          mask.Set(r, c, static_cast<double>(hash >> 11) * 0x1p-53 < density);
        }
      }
    }
    return mask;
  }
  // Cheap, and good enough to scatter zeros.
  static uint64_t HashOf(int64_t a, int64_t b) {
    uint64_t h = static_cast<uint64_t>(a) * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(b);
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u;
    h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
    return h ^ (h >> 31);
  }

  void Dots() {
    executor->ParallelFor(rows, kColumnPiece, [&](int64_t begin, int64_t end, int) {
      for (int64_t o = begin; o < end; ++o)
        y[o] = kernels::Dot(x.data(), &w[o * cols], DType::kF32, cols);
    });
  }
  void Sgemm() {
#ifdef SLUICE_HAVE_DNNL
    const int64_t across = (rows + kColumnPiece - 1) / kColumnPiece;
    const int64_t pieces = across * ((n + kRowPiece - 1) / kRowPiece);
    executor->ParallelFor(pieces, 1, [&](int64_t begin, int64_t end, int) {
      const int before = omp_get_max_threads();
      omp_set_num_threads(1);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / across * kRowPiece;
        const int64_t column = i % across * kColumnPiece;
        dnnl_sgemm('N', 'T', std::min(kRowPiece, n - row), std::min(kColumnPiece, rows - column),
                   cols, 1, &x[row * cols], cols, &w[column * cols], cols, 0,
                   &y[row * rows + column], rows);
      }
      omp_set_num_threads(before);
    });
#endif
  }
};

struct Times {
  double dot = HUGE_VAL, sgemm = HUGE_VAL, sparse = HUGE_VAL;  // milliseconds
  double dense() const { return std::min(dot, sgemm); }
};
Times Measure(Problem& p, const SparseMatrix& m) {
  OwnedWorkspace memory(m.workspace_bytes(p.n, p.threads));
  const RunContext ctx = {memory.workspace(), p.executor.get()};
  // On one thread of the processor's time: other work on the machine lengthens it least.
  const auto now = [&] {
    timespec t;
    clock_gettime(p.threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return 1e3 * static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_nsec);
  };
  const auto time = [&](const auto& body) {
    const double begin = now();
    body();
    return now() - begin;
  };
  std::vector<double> dot;
  std::vector<double> sgemm;
  std::vector<double> sparse;
  for (int i = 0; i <= kRuns; ++i) {
    const double d = p.n == 1 ? time([&] { p.Dots(); }) : HUGE_VAL;
    const double g = time([&] { p.Sgemm(); });
    const double s = time([&] {
      m.MatMul({p.x.data(), p.n, p.cols, p.cols}, {p.y.data(), p.n, p.rows, p.rows}, false, ctx);
    });
    if (i == 0) continue;  // warms up
    dot.push_back(d);
    sgemm.push_back(g);
    sparse.push_back(s);
  }
  const auto median = [](std::vector<double>& v) {
    std::nth_element(v.begin(), v.begin() + kRuns / 2, v.end());
    return v[kRuns / 2];
  };
  Times t;
  t.dot = median(dot);
#ifdef SLUICE_HAVE_DNNL
  t.sgemm = median(sgemm);
#endif
  t.sparse = median(sparse);
  return t;
}

SparseMatrix Packed(const Problem& p, const Pattern& pattern, double density) {
  auto m = SparseMatrix::Pack(p.W(), p.Kept(pattern.layout, density), pattern.layout);
  if (!m.ok()) std::abort();
  return *std::move(m);
}

void BM_Product(benchmark::State& state) {
  const Pattern& pattern = kPatterns[state.range(0)];
  Problem p(state.range(2), state.range(3), state.range(4), static_cast<int>(state.range(5)));
  const SparseMatrix m = Packed(p, pattern, static_cast<double>(state.range(1)) / 100);
  for (auto _ : state) {
    const Times t = Measure(p, m);
    state.SetIterationTime(t.sparse / 1000);
    state.counters["density"] = m.density();
    if (p.n == 1) state.counters["dot_ms"] = t.dot;
    state.counters["sgemm_ms"] = t.sgemm;
    state.counters["speedup"] = t.dense() / t.sparse;
  }
  state.SetLabel(pattern.name);
}
void BM_BreakEven(benchmark::State& state) {
  const Pattern& pattern = kPatterns[state.range(0)];
  Problem p(state.range(1), state.range(2), state.range(3), static_cast<int>(state.range(4)));
  for (auto _ : state) {
    double density = 1;
    Times t;
    for (; density > 0.02; density -= 0.05) {
      t = Measure(p, Packed(p, pattern, density));
      if (t.sparse < t.dense()) break;
    }
    state.SetIterationTime(t.sparse / 1000);
    state.counters["wins_at"] = density > 0.02 ? density : 0;
  }
  state.SetLabel(pattern.name);
}

constexpr int64_t kLlama[] = {4096, 11008};  // 180 MB in f32
constexpr int64_t kLarge[] = {8192, 28672};  // 940 MB

void Products(benchmark::internal::Benchmark* b) {
  for (const int64_t* shape : {kLlama, kLarge}) {
    for (int64_t threads : {1, 2}) {
      for (int64_t density : {50, 30, 10})
        for (int64_t pattern : {0, 1, 4, 5})
          b->Args({pattern, density, shape[0], shape[1], 1, threads});
      for (int64_t pattern : {2, 3}) b->Args({pattern, 50, shape[0], shape[1], 1, threads});
    }
  }
  for (int64_t n : {4, 16, 64, 256}) {
    for (int64_t density : {50, 30, 10})
      for (int64_t pattern : {0, 4}) b->Args({pattern, density, kLlama[0], kLlama[1], n, 1});
    b->Args({2, 50, kLlama[0], kLlama[1], n, 1});
  }
  b->ArgNames({"pattern", "percent", "rows", "cols", "n", "threads"});
}
void BreakEvens(benchmark::internal::Benchmark* b) {
  for (int64_t n : {1, 4, 16, 64, 256})
    for (int64_t pattern : {0, 1, 4, 5}) b->Args({pattern, kLlama[0], kLlama[1], n, 1});
  b->ArgNames({"pattern", "rows", "cols", "n", "threads"});
}
BENCHMARK(BM_Product)
    ->Apply(Products)
    ->Iterations(1)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(BM_BreakEven)
    ->Apply(BreakEvens)
    ->Iterations(1)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
}  // namespace
SLUICE_END_NAMESPACE
BENCHMARK_MAIN();
