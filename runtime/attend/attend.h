#ifndef SLUICE_RUNTIME_ATTEND_ATTEND_H_
#define SLUICE_RUNTIME_ATTEND_ATTEND_H_
// The executor of AttentionPlan. Every listed (query, key) pair that its mask class allows is used
// exactly once and nothing else contributes; a row without keys gives o = 0 and lse = -inf. Runs
// are cut at absolute multiples of 64 keys, so two plans that list the same keys give the same
// bits, and so does any number of workers.
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "sluice/api/attention_plan.h"
#include "sluice/api/router.h"
#include "sluice/api/tensor_view.h"
#include "sluice/api/workspace.h"

SLUICE_BEGIN_NAMESPACE
enum class AttendMode : uint8_t {
  kQueryMajor,  // each tile walks its own list
  kKvMajor,     // tiles are taken in groups and each KV panel is loaded once for the whole group
};

struct AttendShape {
  int64_t max_queries = 0, max_kv = 0;
  int heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0;
  int64_t max_tile = 64;  // largest tile of any plan; also the queries of one group
  int max_branches = 1;   // of plans that merge by weighted sum
  int workers = 1;
};
struct AttendOptions {
  AttendMode mode = AttendMode::kQueryMajor;
  bool amx = true;            // use bf16 matrix tiles for bf16 caches where the CPU has them
  int64_t split_keys = 4096;  // decode: one query's list is cut every so many listed keys and
                              // merged in order; 0: never
  int64_t token_group = 8;  // per-query token lists are executed as the union of this many queries
  float softcap = 0;        // > 0: logit = cap * tanh(logit / cap)
  bool probabilities = false;  // allow AttendOutputs::probabilities
};

struct AttendInputs {
  HeadsView<const float> q;  // [q_count, heads, head_dim]
  KvView k, v;               // [kv_len, kv_heads, head_dim or value_dim]; f32, bf16 or f16
  float scale = 1;
  absl::Span<const SummaryTable> tables;  // Approx entries name them from 1
};
// Running softmax of every (query, head): max logit in log2 units (-inf: empty), sum of 2^(s - m),
// and the unnormalised output.
struct AttentionState {
  float* m = nullptr;  // [q_count, heads]
  float* l = nullptr;
  float* o = nullptr;  // [q_count, heads, value_dim]
  bool empty() const { return m == nullptr; }
};
struct AttendOutputs {
  HeadsView<float> o;               // [q_count, heads, value_dim]
  float* lse = nullptr;             // [q_count, heads], optional; not with a weighted sum
  AttentionState resume;            // optional: where to start from
  AttentionState state;             // optional: where it ended
  MatrixView<float> probabilities;  // optional: [heads * q_count, kv_len]; keys not attended give 0
  AttentionCounters* counters = nullptr;  // optional: added to
};

class Attend {
 public:
  static absl::StatusOr<Attend> Create(const AttendShape& shape, const AttendOptions& options = {});
  size_t workspace_bytes() const { return layout_.bytes(); }
  const AttendShape& shape() const { return shape_; }
  // Const, allocation-free when it succeeds. O(listed pairs * (head_dim + value_dim)).
  absl::Status Run(const AttentionPlan& plan, const AttendInputs& in, const RunContext& ctx,
                   const AttendOutputs& out) const;

 private:
  friend class AttendRun;
  AttendShape shape_;
  AttendOptions options_;
  WorkspaceLayout layout_;
  int64_t rows_ = 0, dv_pad_ = 0, words_ = 0, max_splits_ = 1, max_items_ = 0;
  bool amx_ = false;
  struct Offsets {
    size_t order = 0, cost = 0, split = 0, worker = 0, worker_stride = 0;
    size_t q = 0, o = 0, m = 0, l = 0, kt = 0, v = 0, mask = 0, scratch = 0, ids = 0, bias = 0,
           bits = 0, prob = 0, aq = 0, ak = 0, av = 0, counters = 0, pending_bias = 0;
  } at_;
};

// o = sum_i exp(lse_i - lse) o_i over disjoint key sets; parts with lse = -inf weigh 0. Rows of o_i
// are [rows, dv].
void MergeAttention(absl::Span<const float* const> o, absl::Span<const float* const> lse,
                    int64_t rows, int64_t dv, float* out, float* out_lse);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_ATTEND_ATTEND_H_
