// Dispatch against what it was before: a search of every item for every unit, one unit after the
// other. 4,096 items, top 2, units that do little, so that what is measured is the dispatch itself.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/dispatch/dispatch.h"
#include "sluice/runtime/kernels/gather/gather.h"

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

// The implementation that stood here, without its checks.
struct Before {
  std::vector<int32_t> items = std::vector<int32_t>(kItems);
  std::vector<float> weights = std::vector<float>(kItems), rows_in, rows_out;
  explicit Before(int64_t width) : rows_in(kItems * width), rows_out(kItems * width) {}
  void Run(Problem& p) {
    const Assignment& a = p.buffer.view();
    std::fill(p.out.begin(), p.out.end(), 0.0f);
    for (int64_t u = 0; u < a.units; ++u) {
      int64_t n = 0;
      for (int64_t i = 0; i < a.items; ++i) {
        const auto begin = a.unit.begin() + a.row_ptr[i];
        const auto end = a.unit.begin() + a.row_ptr[i + 1];
        const auto at = std::lower_bound(begin, end, static_cast<int32_t>(u));
        if (at == end || *at != u) continue;
        weights[n] = a.weight[at - a.unit.begin()];
        items[n++] = static_cast<int32_t>(i);
      }
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
}  // namespace
SLUICE_END_NAMESPACE
BENCHMARK_MAIN();
