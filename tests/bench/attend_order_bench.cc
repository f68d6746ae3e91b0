// Who walks: every query over its own list (query-major), or a stream's panels over the queries
// that chose them (KV-major). Per-token lists of `dsa`, 512 keys a query, and of `fsa`, 16 blocks
// of 64 keys a query; 16 k keys, width 128, by the number of query heads that share a KV head.
// Execution only, the last 1,024 queries.
#include <benchmark/benchmark.h>

#include <memory>

#include "sluice/routers/builtin.h"
#include "sluice/runtime/attend/attend.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/tests/support/attention_data.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int64_t kTokens = 16384;
constexpr int64_t kQueries = 1024;
constexpr int64_t kKvHeads = 2;
constexpr int64_t kDim = 128;

// A plan of one chunk at the end of a long prompt, made once.
struct Planned {
  Planned(const char* policy, int64_t group)
      : data(MakeAttentionData(DataKind::kClustered, kTokens, kQueries, group * kKvHeads, kKvHeads,
                               kDim, kDim, 1)),
        executor(MakeTbbExecutor(0)) {
    const auto router = *BuiltinRouters().attention.Create(policy);
    shape = {.max_queries = kQueries,
             .max_kv = kTokens,
             .heads = static_cast<int>(group * kKvHeads),
             .kv_heads = static_cast<int>(kKvHeads),
             .head_dim = static_cast<int>(kDim),
             .value_dim = static_cast<int>(kDim),
             .workers = executor->num_workers()};
    const auto plan = *router->MakePlan(shape);
    storage = *PlanStorage::Create(plan->info().layout);
    layout = plan->info().layout;
    OwnedWorkspace memory(plan->info().workspace_bytes);
    OwnedWorkspace state(plan->info().state_bytes);
    RouterState known = {state.data(), nullptr, 0};
    const absl::Status planned =
        router->Run(*plan, data.Inputs(), known, {memory.workspace(), executor.get()}, *storage);
    SLUICE_DCHECK(planned.ok());
  }
  AttentionData data;
  std::unique_ptr<Executor> executor;
  AttentionShape shape;
  PlanLayout layout;
  std::unique_ptr<PlanStorage> storage;
};

void Order(benchmark::State& state, const char* policy, AttendMode mode, int64_t token_group) {
  Planned p(policy, state.range(0));
  AttendShape shape = {.max_queries = kQueries,
                       .max_kv = kTokens,
                       .heads = p.shape.heads,
                       .kv_heads = p.shape.kv_heads,
                       .head_dim = p.shape.head_dim,
                       .value_dim = p.shape.value_dim,
                       .workers = p.shape.workers};
  shape.Cover(p.layout);
  AttendOptions options;
  options.mode = mode;
  options.token_group = token_group;
  const auto attend = Attend::Create(shape, options);
  SLUICE_DCHECK(attend.ok());
  OwnedWorkspace memory(attend->workspace_bytes());
  const AttentionInputs given = p.data.Inputs();
  AttendInputs in;
  in.q = given.q;
  in.k = given.k;
  in.v = given.v;
  in.scale = given.scale;
  const int64_t width = p.shape.heads * kDim;
  std::vector<float> o(static_cast<size_t>(kQueries * width));
  AttentionCounters counted;
  AttendOutputs out;
  out.o = {o.data(), kQueries, p.shape.heads, kDim, width, kDim};
  out.counters = &counted;
  for (auto _ : state) {
    const absl::Status run =
        attend->Run(p.storage->plan(), in, {memory.workspace(), p.executor.get()}, out);
    if (!run.ok()) state.SkipWithError(std::string(run.message()).c_str());
  }
  state.counters["kv_MB"] = static_cast<double>(counted.kv_bytes) * 1e-6 /
                            static_cast<double>(std::max<int64_t>(1, state.iterations()));
}
// Query heads a KV head.
void Groups(benchmark::internal::Benchmark* b) {
  for (int64_t group : {1, 2, 4, 8, 16}) b->Arg(group);
  b->Unit(benchmark::kMillisecond)->UseRealTime();
}
constexpr char kTokenLists[] = "dsa:k=512";
constexpr char kBlockLists[] = "fsa:phi=mean,position=false";
constexpr char kBlocksOf8[] = "fsa:phi=mean,position=false,tile=8";
constexpr char kBlocksOf64[] = "fsa:phi=mean,position=false,tile=64";
using enum AttendMode;
// Each query alone; the default, a union of 8 queries' lists; and 256 queries a panel.
BENCHMARK_CAPTURE(Order, tokens_query_major, kTokenLists, kQueryMajor, 1)->Apply(Groups);
BENCHMARK_CAPTURE(Order, tokens_union_of_8, kTokenLists, kQueryMajor, 8)->Apply(Groups);
BENCHMARK_CAPTURE(Order, tokens_kv_major, kTokenLists, kKvMajor, 8)->Apply(Groups);
// The same of blocks; unions are the router's, under masks.
BENCHMARK_CAPTURE(Order, blocks_query_major, kBlockLists, kQueryMajor, 1)->Apply(Groups);
BENCHMARK_CAPTURE(Order, blocks_union_of_8, kBlocksOf8, kQueryMajor, 1)->Apply(Groups);
BENCHMARK_CAPTURE(Order, blocks_union_of_64, kBlocksOf64, kQueryMajor, 1)->Apply(Groups);
BENCHMARK_CAPTURE(Order, blocks_kv_major, kBlockLists, kKvMajor, 1)->Apply(Groups);
}  // namespace
SLUICE_END_NAMESPACE
BENCHMARK_MAIN();
