// What a batch costs more through a plug-in than through the virtual call: the same router, the
// smallest plan there is.
#include <benchmark/benchmark.h>

#include "sluice/pruners/builtin.h"
#include "sluice/routers/builtin.h"
#include "sluice/runtime/dynload/plugin_library.h"
#include "sluice/tests/support/attention_data.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace {
void Decode(benchmark::State& state, const FactoryMap<AttentionRouter>& routers) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 4096, 1, 4, 2, 64, 64, 1);
  const auto router = *routers.Create("sink_window");
  AttentionShape s;
  s.max_queries = 1;
  s.max_kv = 4096;
  s.heads = 4;
  s.kv_heads = 2;
  s.head_dim = s.value_dim = 64;
  const auto plan = *router->MakePlan(s);
  const auto storage = *PlanStorage::Create(plan->info().layout);
  RouterState memory;
  InlineExecutor one;
  const AttentionInputs in = a.Inputs();
  for (auto _ : state) {
    benchmark::DoNotOptimize(router->Run(*plan, in, memory, {{}, &one}, *storage).ok());
    // A plug-in's plan has been read already, to be checked; any other is read by who attends.
    benchmark::DoNotOptimize(storage->plan().branches.data());
  }
}
void Assign(benchmark::State& state, const FactoryMap<Router>& routers) {
  constexpr int64_t kItems = 4;
  const auto router = *routers.Create("ftp_static");
  const auto plan = *router->MakePlan({.items = kItems});
  OwnedWorkspace memory(plan->info().workspace_bytes);
  AssignmentBuffer out;
  out.Reserve(kItems, plan->info().max_entries);
  RouteInputs in;
  in.items = kItems;
  InlineExecutor one;
  for (auto _ : state) {
    if (!router->Run(*plan, in, {memory.workspace(), &one}, out.view()).ok())
      return state.SkipWithError("the router fails");
  }
}
const Registry& Plugin() {
  static const Registry* registry = [] {
    auto* r = new Registry;
    if (!LoadPlugin(SLUICE_BUILTIN_PLUGIN, *r).ok()) std::abort();
    return r;
  }();
  return *registry;
}
void BM_AttentionVirtualCall(benchmark::State& state) { Decode(state, BuiltinRouters().attention); }
void BM_AttentionPlugin(benchmark::State& state) { Decode(state, Plugin().attention); }
void BM_AssignmentVirtualCall(benchmark::State& state) { Assign(state, BuiltinPruners().routers); }
void BM_AssignmentPlugin(benchmark::State& state) { Assign(state, Plugin().routers); }
BENCHMARK(BM_AttentionVirtualCall)->Repetitions(9)->ReportAggregatesOnly();
BENCHMARK(BM_AttentionPlugin)->Repetitions(9)->ReportAggregatesOnly();
BENCHMARK(BM_AssignmentVirtualCall)->Repetitions(9)->ReportAggregatesOnly();
BENCHMARK(BM_AssignmentPlugin)->Repetitions(9)->ReportAggregatesOnly();
}  // namespace
SLUICE_END_NAMESPACE
BENCHMARK_MAIN();
