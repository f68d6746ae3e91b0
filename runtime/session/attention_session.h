#ifndef SLUICE_RUNTIME_SESSION_ATTENTION_SESSION_H_
#define SLUICE_RUNTIME_SESSION_ATTENTION_SESSION_H_
// Routed attention for a whole model: what stands between a host and routers, plans, states and the
// executor.
//
//   auto session = AttentionSession::Create({.layers = 32, .heads = 32, .kv_heads = 8, .head_dim =
//   128,
//                                            .max_queries = 512, .max_kv = 32768,
//                                            .policy = "mean_pool:k=32"});
//   ...for every chunk and layer, once its keys are in the cache:
//   (*session)->Run(layer, {.q = q, .k = k, .v = v, .q_begin = begin, .scale = scale}, {.o = out});
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sluice/api/registry.h"
#include "sluice/runtime/attend/attend.h"

SLUICE_BEGIN_NAMESPACE
struct SessionOptions {
  // The model.
  int layers = 1;
  bool layers_known = true;  // false: at most so many, which routers are not told
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int value_dim = 0;           // 0: head_dim
  int64_t width = 0;           // of hidden states, where the host passes them
  bool bidirectional = false;  // an encoder: policies without a causal mask are taken too
  int index_heads = 0;
  int index_dim = 0;
  // Limits.
  int64_t max_queries = 512;  // queries of one Run
  int64_t max_kv = 0;         // tokens of a sequence
  // What to skip: policies/compose/attention.h. Weights travel in the text (nsa:weights=FILE).
  std::string policy = "dense";
  const Registry* methods = nullptr;  // null: the built-in ones
  Executor* executor = nullptr;       // null: threads of the session's own
  int threads = 0;                    // of these; 0: one per CPU
  AttendOptions attend;
  // Keep a fingerprint of every key row, so that Unknown() can be answered: 8 bytes a row.
  bool fingerprints = false;
};

struct SessionOutputs {
  HeadsView<float> o;                // [queries, heads, value_dim]
  float* lse = nullptr;              // [queries, heads], optional
  absl::Span<const float> key_bias;  // optional [kv_heads, kv_len], added to the plan's logits
  LogitMask mask;                    // optional; wants SessionOptions::attend.logit_mask
};

// Not for concurrent use; one session serves any number of sequences in turn.
class AttentionSession {
 public:
  static absl::StatusOr<std::unique_ptr<AttentionSession>> Create(const SessionOptions& options);
  ~AttentionSession();

  // Plans and attends some queries of a layer, whose keys and values are in the cache already.
  // Fields of `in` that the policy does not read may stay empty; `layer` and `stage` are set here.
  // After the first Run of a sequence nothing is allocated.
  absl::Status Run(int layer, const AttentionInputs& in, const SessionOutputs& out,
                   int64_t sequence = 0);
  // Runs a plan of the host's own with the session's executor and memory, without touching any
  // state.
  absl::Status Attend(int layer, const AttentionPlan& plan, const AttentionInputs& in,
                      const SessionOutputs& out);

  // Forgets tokens from `tokens` on.
  void Truncate(int64_t tokens, int64_t sequence = 0);
  void Clear(int64_t sequence = 0) { Truncate(0, sequence); }
  // The host cannot tell whether earlier keys of a layer changed: the next Run checks every row
  // that its state speaks of, and forgets from the first that differs.
  void Unknown(int layer, int64_t sequence = 0);
  // Keys that a layer's state speaks of.
  int64_t known_keys(int layer, int64_t sequence = 0) const;
  // The same once what `in` belies is forgotten, as the next Run with it would: for hosts that keep
  // something of their own a key. 0 of policies without memory, whose keys nobody checks.
  absl::StatusOr<int64_t> KeysThatStay(int layer, const AttentionInputs& in, int64_t sequence = 0);

  const AttentionRouter& router() const;
  const AttentionPlanInfo& info() const;  // of the router's plan
  const SessionOptions& options() const;
  Executor& executor() const;
  // Measured since the session was made, or since ResetCounters.
  const AttentionCounters& counters(int layer) const;
  double plan_seconds(int layer) const;
  double attend_seconds(int layer) const;
  void ResetCounters();
  // Sees every plan after it ran, and how long that took; not in the timing.
  void OnPlan(
      std::function<void(int layer, const AttentionPlan&, const AttentionInputs&, double)> see);

 private:
  struct Impl;
  explicit AttentionSession(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SESSION_ATTENTION_SESSION_H_
