#ifndef SLUICE_TESTS_SUPPORT_ROUTER_HARNESS_H_
#define SLUICE_TESTS_SUPPORT_ROUTER_HARNESS_H_
// Runs an attention policy over data the way a host does: through a session, chunk by chunk.
#include <gtest/gtest.h>

#include <functional>

#include "sluice/api/plan_check.h"
#include "sluice/routers/builtin.h"
#include "sluice/runtime/attend/attend_reference.h"
#include "sluice/runtime/attend/metrics.h"
#include "sluice/runtime/session/attention_session.h"
#include "sluice/tests/support/attention_data.h"
#include "sluice/tests/support/synthetic_weights.h"

SLUICE_BEGIN_NAMESPACE
struct RoutedRun {
  std::vector<float> o;                      // [q_count, heads, dv]
  std::vector<std::vector<uint32_t>> lists;  // [q_count * heads]: keys attended, ascending
  bool one_softmax = true;                   // else branches may list the same keys
  AttentionCounters counters;
  PlanQuality quality;
  absl::Status status;
};
struct HarnessOptions {
  int64_t chunk = 0;        // queries per call; 0: all at once
  int64_t first_chunk = 0;  // queries of the first call; 0: as the others
  int threads = 1;
  int layer = 0;
  bool quality = false;
  bool validate = true;  // check every plan in full
  AttendOptions attend;
  const Registry* methods = nullptr;  // null: built in
  uint64_t weights_seed = 1;
  std::function<void(SessionOptions&, AttentionInputs&)> adjust;  // index inputs and the like
  std::function<void(const AttentionPlan&)> see;
};

// The methods of a registry, their learned ones with synthetic weights ("nsa:weights=synthetic").
inline absl::Status WithSyntheticWeights(const std::string& policy, const AttentionShape& shape,
                                         uint64_t seed, Registry& methods) {
  if (policy.find('(') != std::string::npos) return absl::OkStatus();
  SLUICE_ASSIGN_OR_RETURN(Spec spec, ParseSpec(policy));
  SLUICE_ASSIGN_OR_RETURN(const auto* factory, methods.attention.Find(spec.name));
  if (!factory->learned()) return absl::OkStatus();
  std::erase_if(spec.options, [](const KeyValue& kv) { return kv.first == "weights"; });
  SLUICE_ASSIGN_OR_RETURN(const WeightKeys keys, factory->Weights(spec.options, shape));
  methods.OpenWeightsWith(
      [keys, seed](const std::string&) -> absl::StatusOr<std::unique_ptr<const WeightSource>> {
        return std::unique_ptr<const WeightSource>(std::make_unique<SyntheticWeights>(keys, seed));
      });
  return absl::OkStatus();
}

inline SessionOptions HarnessSession(const std::string& policy, const AttentionData& a,
                                     const HarnessOptions& options) {
  SessionOptions s;
  s.layers = std::max(4, options.layer + 1);
  s.heads = static_cast<int>(a.heads);
  s.kv_heads = static_cast<int>(a.kv_heads);
  s.head_dim = static_cast<int>(a.d);
  s.value_dim = static_cast<int>(a.dv);
  s.width = a.width;
  s.bidirectional = true;
  s.max_queries = std::max(options.chunk > 0 ? options.chunk : a.q_count, options.first_chunk);
  s.max_kv = a.kv_len;
  s.policy = policy;
  s.threads = options.threads;
  s.attend = options.attend;
  return s;
}

// The inputs of queries [at, at + n) of the data.
inline AttentionInputs ChunkOf(const AttentionInputs& whole, int64_t at, int64_t n) {
  AttentionInputs in = whole;
  const auto rows = [&](HeadsView<const float>& v) {
    if (v.empty()) return;
    v.data = v.at(at, 0);
    v.rows = n;
  };
  const auto matrix = [&](MatrixView<const float>& v) {
    if (v.empty()) return;
    v.data = v.row(at);
    v.rows = n;
  };
  rows(in.q);
  rows(in.q_pre);
  rows(in.index.q);
  matrix(in.index.weight);
  matrix(in.hidden);
  in.q_begin = whole.q_begin + at;
  in.k.rows = in.v.rows = in.q_begin + n;
  if (!in.k_pre.empty()) in.k_pre.rows = in.k.rows;
  if (!in.index.k.empty()) in.index.k.rows = in.k.rows;
  return in;
}

inline RoutedRun RunRouter(const std::string& policy, const AttentionData& a,
                           const HarnessOptions& options = {}) {
  RoutedRun r;
  AttentionInputs whole = a.Inputs();
  SessionOptions s = HarnessSession(policy, a, options);
  if (options.adjust) options.adjust(s, whole);
  Registry methods;
  if (options.methods == nullptr) {
    r.status = AddBuiltinRouters(methods);
    const AttentionShape shape = {.max_queries = s.max_queries,
                                  .max_kv = s.max_kv,
                                  .heads = s.heads,
                                  .kv_heads = s.kv_heads,
                                  .head_dim = s.head_dim,
                                  .value_dim = s.value_dim,
                                  .layers = s.layers,
                                  .width = s.width};
    r.status.Update(WithSyntheticWeights(policy, shape, options.weights_seed, methods));
    if (!r.status.ok()) return r;
  }
  s.methods = options.methods != nullptr ? options.methods : &methods;
  auto session = AttentionSession::Create(s);
  if (!session.ok()) {
    r.status = session.status();
    return r;
  }
  r.o.assign(a.q_count * a.heads * a.dv, NAN);
  r.lists.resize(a.q_count * a.heads);
  absl::Status invalid;
  int64_t at = 0;
  (*session)->OnPlan([&](int, const AttentionPlan& plan, const AttentionInputs& in, double) {
    if (options.validate) invalid.Update(ValidateAttentionPlan(plan));
    r.one_softmax = plan.merge == Merge::kLse;
    for (int64_t i = 0; i < plan.q_count; ++i) {
      for (int64_t h = 0; h < a.heads; ++h) {
        std::vector<uint32_t>& list = r.lists[(at + i) * a.heads + h];
        for (const AttentionBranch& b : plan.branches) {
          ForEachPair(plan, b, i, h, [&](int64_t key, int table, double) {
            if (table == 0) list.push_back(static_cast<uint32_t>(key));
          });
        }
        std::sort(list.begin(), list.end());
      }
    }
    if (options.see) options.see(plan);
    if (options.quality) {
      float* o = r.o.data() + at * a.heads * a.dv;
      r.quality.Add(MeasurePlan(plan, in.q, in.k, in.v, in.scale,
                                {o, plan.q_count, a.heads, a.dv, a.heads * a.dv, a.dv}));
    }
  });
  const int64_t chunk = options.chunk > 0 ? options.chunk : a.q_count;
  for (int64_t n = options.first_chunk > 0 ? options.first_chunk : chunk; at < a.q_count;
       at += n, n = chunk) {
    n = std::min(n, a.q_count - at);
    const AttentionInputs in = ChunkOf(whole, at, n);
    float* o = r.o.data() + at * a.heads * a.dv;
    r.status =
        (*session)->Run(options.layer, in, {.o = {o, n, a.heads, a.dv, a.heads * a.dv, a.dv}});
    r.status.Update(invalid);
    if (!r.status.ok()) return r;
  }
  r.counters = (*session)->counters(options.layer);
  return r;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_ROUTER_HARNESS_H_
