// The dense baseline of attention_bench on libtorch: the same products and softmax per chunk and KV
// head.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include <cmath>
#include <limits>

namespace {
constexpr int64_t kHeads = 8, kKvHeads = 2, kDim = 64, kChunk = 512;

void Torch(benchmark::State& state) {
  at::NoGradGuard no_grad;
  at::manual_seed(1);
  const int64_t tokens = state.range(0), g = kHeads / kKvHeads;
  const at::Tensor q = at::randn({kKvHeads, g, tokens, kDim}),
                   k = at::randn({kKvHeads, tokens, kDim}), v = at::randn({kKvHeads, tokens, kDim});
  const double scale = 1 / std::sqrt(static_cast<double>(kDim));
  const at::Tensor future =
      at::ones({kChunk, kChunk}, at::kBool).triu(1);  // keys after the query, inside the last chunk
  for (auto _ : state) {
    for (int64_t at = 0; at < tokens; at += kChunk) {
      const int64_t keys = at + kChunk;
      for (int64_t kv = 0; kv < kKvHeads; ++kv) {
        const at::Tensor rows = q[kv].narrow(1, at, kChunk).reshape({g * kChunk, kDim}) * scale;
        at::Tensor s = at::mm(rows, k[kv].narrow(0, 0, keys).t());
        s.view({g, kChunk, keys})
            .narrow(2, at, kChunk)
            .masked_fill_(future, -std::numeric_limits<float>::infinity());
        const at::Tensor o = at::mm(at::softmax(s, 1), v[kv].narrow(0, 0, keys));
        benchmark::DoNotOptimize(o.data_ptr());
      }
    }
  }
}
BENCHMARK(Torch)->Arg(4096)->Arg(16384)->Unit(benchmark::kMillisecond)->UseRealTime();
}  // namespace
BENCHMARK_MAIN();
