// How routed attention grows with the keys: one decode step and one chunk of 512 prompt queries
// after 16 k to 1 M keys of drifting topics, planned and attended by a session as a host does it,
// dense attention beside every policy. Causal, bf16 cache, head width 64, 8 query heads, 2 KV
// heads. `growth.py` makes the table, the exponents and the plot.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "sluice/runtime/attend/metrics.h"
#include "sluice/runtime/session/attention_session.h"
#include "sluice/tests/support/attention_data.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int64_t kHeads = 8;
constexpr int64_t kKvHeads = 2;
constexpr int64_t kDim = 64;
constexpr int64_t kChunk = 512;
constexpr int64_t kSteps = 64;  // tokens that a decode run appends before it starts again

// Of one length at a time: a million keys take half a gigabyte.
const AttentionData& Data(int64_t keys) {
  static AttentionData data;
  if (data.kv_len != keys) {
    data = {};
    data = MakeAttentionData(DataKind::kClustered, keys, kChunk, kHeads, kKvHeads, kDim, kDim, 1);
    data.Convert(DType::kBF16);
    data.k = {};
    data.v = {};
  }
  return data;
}

std::unique_ptr<AttentionSession> Session(const std::string& policy, int64_t keys) {
  const char* threads = std::getenv("SLUICE_BENCH_THREADS");  // default: one per CPU
  return *AttentionSession::Create({.layers = 1,
                                    .heads = static_cast<int>(kHeads),
                                    .kv_heads = static_cast<int>(kKvHeads),
                                    .head_dim = static_cast<int>(kDim),
                                    .max_queries = kChunk,
                                    .max_kv = keys,
                                    .policy = policy,
                                    .threads = threads != nullptr ? std::atoi(threads) : 0});
}

// `count` queries, the last of which sees `seen` keys. The data has queries for its last positions;
// a step before them borrows the first.
AttentionInputs At(const AttentionData& a, int64_t seen, int64_t count) {
  AttentionInputs in = a.Inputs();
  in.q_begin = seen - count;
  in.q.data = in.q.at(std::max<int64_t>(0, in.q_begin - a.q_begin()), 0);
  in.q.rows = count;
  in.q_pre = in.q;
  in.k.rows = in.v.rows = in.k_pre.rows = seen;
  // A chunk is one of many; a step comes after the prompt.
  in.prompt_end = count > 1 ? 2 * a.kv_len : a.kv_len - kSteps;
  return in;
}

int64_t Bytes(const PlanLayout& layout) {
  int64_t bytes = layout.weight_slots * 4 + layout.perm_slots * 4 + layout.bias_slots * 4;
  for (int i = 0; i < layout.num_branches; ++i) {
    const BranchLayout& b = layout.branches[i];
    const int64_t slots = std::max(b.entry_slots, b.token_slots);
    bytes += b.rows * (12 + b.entry_slots * static_cast<int64_t>(sizeof(PlanEntry)) +
                       b.token_slots * 4 + slots * (4 * b.bias + 8 * b.mask));
    bytes += b.prefix_slots * 4 + b.order_slots * 4 + b.terms * int64_t{sizeof(PatternTerm)};
  }
  return bytes;
}

// What the session did in the runs that were timed, and how much of dense attention's mass its last
// plan kept.
void Report(benchmark::State& state, const AttentionSession& session, const PlanQuality& quality) {
  const auto runs = static_cast<double>(state.iterations());
  constexpr double kMiB = 1 << 20;
  state.counters["plan_ms"] = 1e3 * session.plan_seconds(0) / runs;
  state.counters["attend_ms"] = 1e3 * session.attend_seconds(0) / runs;
  state.counters["density"] = session.counters(0).density();
  state.counters["mass"] = quality.mass_recall.mean();
  state.counters["state_MiB"] = static_cast<double>(session.info().state_bytes) / kMiB;
  state.counters["plan_MiB"] = static_cast<double>(Bytes(session.info().layout)) / kMiB;
}

// Argument: keys. `count` queries a run: 1, each after one more key, or a chunk, again and again.
void Grow(benchmark::State& state, const std::string& policy, int64_t count) {
  const int64_t keys = state.range(0);
  const AttentionData& a = Data(keys);
  const auto session = Session(policy, keys);
  std::vector<float> o(kChunk * kHeads * kDim);
  const auto run = [&](int64_t seen, int64_t queries) {
    const SessionOutputs out = {.o = {o.data(), queries, kHeads, kDim, kHeads * kDim, kDim},
                                .lse = nullptr};
    return session->Run(0, At(a, seen, queries), out);
  };
  const int64_t begin = count == 1 ? keys - kSteps : keys - count;
  absl::Status status = run(begin, 1);
  PlanQuality quality;
  session->OnPlan([&](int, const AttentionPlan& plan, const AttentionInputs& in, double) {
    quality = MeasurePlan(plan, in.q, in.k, in.v, in.scale, {}, {.query_stride = 64});
  });
  status.Update(run(begin + count, count));
  session->OnPlan(nullptr);
  session->Truncate(begin);
  status.Update(run(begin, 1));
  session->ResetCounters();
  int64_t seen = begin;
  for (auto _ : state) {
    if (seen + count > keys) {
      state.PauseTiming();
      session->Truncate(begin);
      seen = begin;
      state.ResumeTiming();
    }
    seen += count;
    status.Update(run(seen, count));
  }
  if (!status.ok()) return state.SkipWithError(status.ToString().c_str());
  Report(state, *session, quality);
}

void Register(const std::string& kind, const std::string& policy, int64_t keys, int64_t count) {
  benchmark::RegisterBenchmark((kind + "/" + policy).c_str(), Grow, policy, count)
      ->Arg(keys)
      ->ArgName("keys")
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime();
}
}  // namespace
SLUICE_END_NAMESPACE

// By length, so that the keys are made once.
int main(int argc, char** argv) {
  using namespace sluice;
  const char* const policies[] = {
      "dense",
      "sink_window",
      "quest",
      "hisa:k=512,m=16",
      "dsa:k=512",
      "hip:mask_k=512",
      "infinite_hip",
      "mean_pool:k=16",
      "seer_attention:gate=identity,block=32,density=0.14,dense_tail=12"};
  for (int64_t keys :
       {int64_t{16} << 10, int64_t{64} << 10, int64_t{256} << 10, int64_t{1} << 20}) {
    for (const char* policy : policies) {
      Register("decode", policy, keys, 1);
      if (keys <= int64_t{256} << 10) Register("prefill", policy, keys, kChunk);
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
