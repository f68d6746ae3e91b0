#ifndef SLUICE_TESTS_SUPPORT_ROUTER_HARNESS_H_
#define SLUICE_TESTS_SUPPORT_ROUTER_HARNESS_H_
// Runs an attention router and the executor over data the way a host does: chunk by chunk, state
// kept between chunks.
#include <gtest/gtest.h>

#include <functional>

#include "sluice/api/registry.h"
#include "sluice/runtime/attend/attend.h"
#include "sluice/runtime/attend/attend_reference.h"
#include "sluice/runtime/attend/metrics.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/tests/support/attention_data.h"

SLUICE_BEGIN_NAMESPACE
struct RoutedRun {
  std::vector<float> o;                      // [q_count, heads, dv]
  std::vector<std::vector<uint32_t>> lists;  // [q_count * heads]: keys attended, ascending
  std::vector<std::vector<std::pair<uint32_t, uint32_t>>>
      entries;  // per chunk and list row: what the plan listed
  AttentionCounters counters;
  PlanQuality quality;
  absl::Status status;
};
struct HarnessOptions {
  int64_t chunk = 0;  // queries per call; 0: all at once
  int threads = 1;
  bool quality = false;
  AttendOptions attend;
  std::function<void(AttentionShape&, AttentionInputs&)> adjust;  // index inputs and the like
};
inline RoutedRun RunRouter(const AttentionRouter& router, const AttentionData& a,
                           const HarnessOptions& options = {}) {
  RoutedRun r;
  const int64_t chunk = options.chunk > 0 ? options.chunk : a.q_count;
  AttentionShape s;
  s.max_queries = chunk;
  s.max_kv = a.kv_len;
  s.heads = static_cast<int>(a.heads);
  s.kv_heads = static_cast<int>(a.kv_heads);
  s.head_dim = static_cast<int>(a.d);
  s.value_dim = static_cast<int>(a.dv);
  s.workers = options.threads;
  AttentionInputs whole = a.Inputs();
  if (options.adjust) options.adjust(s, whole);
  auto plan = router.MakePlan(s);
  if (!plan.ok()) {
    r.status = plan.status();
    return r;
  }
  const AttentionPlanInfo& info = (*plan)->info();
  auto attend = Attend::Create(
      {chunk, a.kv_len, s.heads, s.kv_heads, s.head_dim, s.value_dim, 64, 1, s.workers},
      options.attend);
  EXPECT_TRUE(attend.ok());
  OwnedWorkspace plan_ws(info.workspace_bytes), attend_ws(attend->workspace_bytes()),
      state(info.state_bytes);
  AttentionPlanBuffer buffer;
  buffer.Reserve(info.max_rows, info.entry_slots, info.token_slots, info.prefix_slots);
  std::unique_ptr<Executor> ex = MakeTbbExecutor(options.threads);
  r.o.assign(a.q_count * a.heads * a.dv, NAN);
  r.lists.resize(a.q_count * a.heads);
  for (int64_t at = 0; at < a.q_count; at += chunk) {
    const int64_t n = std::min(chunk, a.q_count - at);
    AttentionInputs in = whole;
    in.q.data = whole.q.at(at, 0);
    in.q.rows = n;
    if (!whole.q_pre.empty()) {
      in.q_pre.data = whole.q_pre.at(at, 0);
      in.q_pre.rows = n;
    }
    in.q_begin = a.q_begin() + at;
    in.k.rows = in.v.rows = in.q_begin + n;
    if (!whole.k_pre.empty()) in.k_pre.rows = in.k.rows;
    if (!whole.index.q.empty()) {
      in.index.q.data = whole.index.q.at(at, 0);
      in.index.q.rows = n;
      in.index.weight.data = whole.index.weight.row(at);
      in.index.weight.rows = n;
      in.index.k.rows = in.k.rows;
    }
    r.status = router.Run(**plan, in, state.data(), {plan_ws.workspace(), ex.get()}, buffer);
    if (!r.status.ok()) return r;
    r.status = ValidateAttentionPlan(buffer.plan());
    if (!r.status.ok()) return r;
    AttendInputs ai;
    ai.q = in.q;
    ai.k = in.k;
    ai.v = in.v;
    ai.scale = in.scale;
    AttendOutputs out;
    out.o = {r.o.data() + at * a.heads * a.dv, n, a.heads, a.dv, a.heads * a.dv, a.dv};
    out.counters = &r.counters;
    r.status = attend->Run(buffer.plan(), ai, {attend_ws.workspace(), ex.get()}, out);
    if (!r.status.ok()) return r;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t h = 0; h < a.heads; ++h) {
        std::vector<uint32_t>& list = r.lists[(at + i) * a.heads + h];
        for (const AttentionBranch& b : buffer.plan().branches)
          ForEachPair(buffer.plan(), b, {}, i, h, [&](int64_t key, int, double) {
            list.push_back(static_cast<uint32_t>(key));
          });
        std::sort(list.begin(), list.end());
      }
    }
    if (options.quality)
      r.quality.Add(MeasurePlan(buffer.plan(), in.q, in.k, in.v, in.scale,
                                {out.o.data, n, a.heads, a.dv, a.heads * a.dv, a.dv}));
  }
  return r;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_ROUTER_HARNESS_H_
