// Prefill of the bundled model with part of its units approximated, beside dense. The time that the
// work done allows is dense time by the share of multiply-adds left (MMAC/token).
#include <benchmark/benchmark.h>

#include "sluice/runtime/host/engine.h"
#include "sluice/tests/support/random_weights.h"

namespace {
constexpr int64_t kRank = 64, kHidden = 32;
const sluice::host::Model& Mini() {
  static const auto* m = new sluice::host::Model(*sluice::host::LoadModel(
      std::string(SLUICE_SOURCE_DIR) + "/examples/models/sluice-mini-q8_0.gguf"));
  return *m;
}
const sluice::RandomWeights& Weights() {
  static const auto* w = new sluice::RandomWeights(
      {{"layers", 6}, {"dim", 384}, {"hidden", kHidden}, {"rank", kRank}, {"silu", 1}});
  return *w;
}
// range(0): tokens, range(1): percent approximated.
void Prefill(benchmark::State& state) {
  sluice::host::EngineOptions o;
  o.max_tokens = state.range(0);
  o.chunk = 1024;
  if (state.range(1) > 0) {
    o.tokens.router = "token/informed_routing";
    o.tokens.weights = &Weights();
    o.tokens.random = {static_cast<double>(state.range(1)) / 100};
  }
  auto e = sluice::host::Engine::Create(Mini(), o);
  if (!e.ok()) return state.SkipWithError(std::string(e.status().message()).c_str());
  std::vector<int32_t> tokens(state.range(0));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>(sluice::RandomBits({1, 0, 0, 0, i}) % 8000);
  for (auto _ : state) {
    (*e)->Reset();
    if (absl::Status s = (*e)->Feed(tokens, 1 << 30); !s.ok())
      state.SkipWithError(std::string(s.message()).c_str());
  }
  state.counters["MMAC/token"] = static_cast<double>((*e)->linear().macs + (*e)->counters().macs) *
                                 1e-6 / static_cast<double>(tokens.size());
}
BENCHMARK(Prefill)
    ->ArgsProduct({{1024, 4096}, {0, 25, 40, 70}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
}  // namespace
BENCHMARK_MAIN();
