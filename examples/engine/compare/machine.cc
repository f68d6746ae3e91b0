#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/examples/engine/compare/compare.h"
#include "sluice/routers/builtin.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/kernels/convert/convert.h"

namespace engine {
absl::StatusOr<sluice::MachineRates> CalibrateMachine(const ModelShape& m, const EngineOptions& o) {
  const auto executor = sluice::MakeTbbExecutor(o.threads);
  const int64_t d = m.head_dim, keys = std::min<int64_t>(6144, m.context), qw = m.heads * d, kw = m.kv_heads * d;
  const int64_t chunk = std::min(o.chunk, keys);
  const auto random = [](int64_t n, uint64_t seed) {
    std::vector<float> x(static_cast<size_t>(n));
    for (size_t i = 0; i < x.size(); ++i) x[i] = 2 * static_cast<float>(sluice::RandomUniform({seed, 0, 0, 0, i})) - 1;
    return x;
  };
  const std::vector<float> q = random(chunk * qw, 1), k = random(keys * kw, 2), v = random(keys * kw, 3);
  std::vector<std::byte> k_low, v_low;
  const auto view = [&](const std::vector<float>& x, std::vector<std::byte>& low) {
    if (o.cache == sluice::DType::kF32) return sluice::KvView{x.data(), o.cache, keys, m.kv_heads, d, kw, d};
    low.resize(x.size() * sluice::DTypeBytes(o.cache));
    sluice::kernels::ConvertFromF32(x.data(), x.size(), o.cache, low.data());
    return sluice::KvView{low.data(), o.cache, keys, m.kv_heads, d, kw, d};
  };
  const sluice::KvView kv = view(k, k_low), vv = view(v, v_low);
  std::vector<float> out(q.size());
  sluice::AttentionShape shape;
  shape.max_queries = chunk, shape.max_kv = keys, shape.heads = static_cast<int>(m.heads);
  shape.kv_heads = static_cast<int>(m.kv_heads), shape.head_dim = shape.value_dim = static_cast<int>(d);
  shape.workers = executor->num_workers();
  sluice::AttendShape as;
  as.max_queries = chunk, as.max_kv = keys, as.heads = shape.heads, as.kv_heads = shape.kv_heads;
  as.head_dim = as.value_dim = static_cast<int>(d), as.workers = shape.workers;
  SLUICE_ASSIGN_OR_RETURN(const sluice::Attend attend, sluice::Attend::Create(as));
  // In a model, matrix products run between two attentions: they take the caches, and their threads linger.
  openblas_set_num_threads(executor->num_workers());
  const std::vector<float> x = random(chunk * m.width, 4), w = random(m.width * 2 * m.ffn, 5);
  std::vector<float> y(static_cast<size_t>(chunk * 2 * m.ffn));
  const auto between = [&] {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(chunk), static_cast<int>(2 * m.ffn),
                static_cast<int>(m.width), 1, x.data(), static_cast<int>(m.width), w.data(), static_cast<int>(m.width),
                0, y.data(), static_cast<int>(2 * m.ffn));
  };
  std::vector<sluice::MeasuredPlan> measured;
  // Shapes of other sizes and lists than any model's plans: windows and pooled blocks at random data.
  for (const char* spec : {"dense", "sink_window:sink=64,window=192", "sink_window:window=768", "mean_pool:k=3",
                           "mean_pool:k=12", "mean_pool:k=40", "dsa:k=96", "dsa:k=384"}) {
    SLUICE_ASSIGN_OR_RETURN(const auto router, sluice::BuiltinRouters().attention.Create(spec));
    SLUICE_ASSIGN_OR_RETURN(const auto plan, router->MakePlan(shape));
    const sluice::AttentionPlanInfo& info = plan->info();
    sluice::AttentionPlanBuffer buffer;
    buffer.Reserve(info.max_rows, info.entry_slots, info.token_slots, info.prefix_slots);
    for (int64_t end : {chunk, keys / 3, keys}) {
      if (end < chunk) continue;
      std::vector<std::byte> state(info.state_bytes + 64),
          scratch(std::max(info.workspace_bytes, attend.workspace_bytes()) + 64);
      const auto align = [](std::vector<std::byte>& x) {
        return reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(x.data()) + 63) / 64 * 64);
      };
      sluice::AttentionInputs in;
      in.q = {q.data(), chunk, m.heads, d, qw, d};
      in.k = kv, in.v = vv;
      in.k.rows = in.v.rows = end;
      in.q_begin = end - chunk, in.scale = 0.125f;
      SLUICE_RETURN_IF_ERROR(
          router->Run(*plan, in, align(state), {{align(scratch), scratch.size() - 64}, executor.get()}, buffer));
      double seconds = 0;  // a mean: what a model spends is the sum of all its calls
      for (int r = 0; r < 7; ++r) {
        between();
        const auto from = std::chrono::steady_clock::now();
        SLUICE_RETURN_IF_ERROR(attend.Run(buffer.plan(), {in.q, in.k, in.v, in.scale, {}},
                                          {{align(scratch), scratch.size() - 64}, executor.get()},
                                          {{out.data(), chunk, m.heads, d, qw, d}, nullptr, {}, {}, {}, nullptr}));
        seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count() / 7;
      }
      measured.push_back({sluice::WorkOf(buffer.plan(), {as.head_dim, as.value_dim,
                                                         static_cast<int64_t>(sluice::DTypeBytes(o.cache)), 8}),
                          seconds});
    }
  }
  // What comes from memory at best, by reading more than any cache holds.
  const std::vector<float> large(size_t{16} << 20, 1.0f);
  double best = HUGE_VAL;
  volatile double sink = 0;
  for (int r = 0; r < 5; ++r) {
    const auto from = std::chrono::steady_clock::now();
    std::vector<double> sums(static_cast<size_t>(executor->num_workers()));
    executor->ParallelFor(static_cast<int64_t>(large.size()), 1 << 18, [&](int64_t b, int64_t e, int worker) {
      float s[8] = {};
      for (int64_t i = b; i + 8 <= e; i += 8) {
        for (int j = 0; j < 8; ++j) s[j] += large[static_cast<size_t>(i + j)];
      }
      sums[static_cast<size_t>(worker)] += static_cast<double>(s[0]);
    });
    for (double s : sums) sink = sink + s;
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count());
  }
  return sluice::FitMachine(measured, static_cast<double>(large.size() * sizeof(float)) / best);
}
}  // namespace engine
