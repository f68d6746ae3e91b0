#ifndef SLUICE_RUNTIME_ATTEND_ATTEND_H_
#define SLUICE_RUNTIME_ATTEND_ATTEND_H_
// The executor of AttentionPlan. Every listed (query, key) pair that its mask class allows is used
// exactly once and nothing else contributes; a row without keys, or whose keys all weigh zero,
// gives o = 0 and lse = -inf. A NaN in q, k, a visible v, the scale or a bias comes out as NaN; a
// hidden key contributes nothing whatever it holds. Runs are cut at absolute multiples of 64 keys,
// so two plans of the same queries that list the same keys give the same bits, and so does any
// number of workers; a call of at most 16 (query, head) pairs a KV head has last bits of its own.
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "sluice/api/attention_plan.h"
#include "sluice/api/plan_builder.h"
#include "sluice/api/router.h"
#include "sluice/api/tensor_view.h"
#include "sluice/api/workspace.h"
#include "sluice/runtime/kernels/attention_panel/attention_panel.h"

SLUICE_BEGIN_NAMESPACE
enum class AttendMode : uint8_t {
  kQueryMajor,  // each tile walks its own list
  kKvMajor,  // a stream's tiles are taken together and each KV panel is loaded once for all of them
};

struct AttendShape {
  int64_t max_queries = 0;
  int64_t max_kv = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int value_dim = 0;
  int64_t max_tile = 64;  // largest tile of any plan
  int max_branches = 1;
  int64_t max_slots = 0;  // of query orders, all lists together
  int workers = 1;

  // What plans of a layout need.
  void Cover(const PlanLayout& layout) {
    max_tile = std::max(max_tile, layout.max_tile);
    max_branches = std::max(max_branches, layout.num_branches);
    for (int i = 0; i < layout.num_branches; ++i)
      max_slots = std::max(max_slots, layout.branches[i].order_slots);
  }
};
struct AttendOptions {
  AttendMode mode = AttendMode::kQueryMajor;
  // What works on bf16 caches. A unit asked for by name must be there.
  kernels::Bf16Unit bf16 = kernels::Bf16Unit::kBest;
  int64_t split_keys = 1024;  // decode: one query's list is cut every so many listed keys and
                              // merged in order; 0: never
  int64_t token_group = 8;    // per-query token lists run as the union of this many queries
  float softcap = 0;          // > 0: logit = cap * tanh(logit / cap)
  // Calls of few (query, head) pairs are multiplied as keys are read, not packed. This asks for it
  // wherever a tile has few rows, whatever the call: faster for lists of single queries, but plans
  // with other tiles then give other last bits.
  bool few_rows = false;
  bool logit_mask = false;     // allow AttendInputs::mask
  bool probabilities = false;  // allow AttendOutputs::probabilities
  bool feedback = false;       // allow AttendOutputs::feedback
};

// Added to the logits of the pairs that a plan lists, as hosts with a matrix of masks say what they
// want: -inf hides a pair, whatever its key holds. Summaries are not touched.
struct LogitMask {
  static constexpr uint16_t kHidden = 0xFC00;  // -inf
  const uint16_t* values = nullptr;            // f16 [q_count, kv_len]; null: none
  int64_t stride = 0;                          // elements a row, at least kv_len
  const float* slopes = nullptr;               // [heads], times the values; positive; null: 1
  // Optional, for plans of one branch: a bit a panel of 64 keys, set where all values of a tile's
  // queries are 0, which are then not read; (kv_len + 4095) / 4096 words a tile.
  const uint64_t* zero = nullptr;
  bool empty() const { return values == nullptr; }
};
struct AttendInputs {
  HeadsView<const float> q;  // [q_count, heads, head_dim]
  KvView k;                  // [kv_len, kv_heads, head_dim]; any type but i8
  KvView v;                  // [kv_len, kv_heads, value_dim]
  float scale = 1;
  LogitMask mask;
};
// Running softmax of every (query, head): max logit in log2 units (-inf: empty), sum of 2^(s - m),
// and the unnormalised output.
struct SoftmaxState {
  float* m = nullptr;  // [q_count, heads]
  float* l = nullptr;
  float* o = nullptr;  // [q_count, heads, value_dim]
  bool empty() const { return m == nullptr; }
};
// What routers may ask for; computed in a second pass over the keys, never as a [queries, keys]
// matrix. Sums are exact in units of 2^-32, and so the same for any number of workers.
struct FeedbackOutputs {
  float* key_mass = nullptr;   // [heads, kv_len]: sums of probability over the queries
  float* head_norm = nullptr;  // [heads]: sums of |o|
  float* row_max = nullptr;    // [q_count, heads]: the largest probability
  bool any() const { return key_mass != nullptr || head_norm != nullptr || row_max != nullptr; }
};
struct AttendOutputs {
  HeadsView<float> o;                     // [q_count, heads, value_dim]
  float* lse = nullptr;                   // [q_count, heads], optional; of plans of one softmax
  SoftmaxState resume;                    // optional: where to start from
  SoftmaxState state;                     // optional: where it ended
  MatrixView<float> probabilities;        // optional [heads * q_count, kv_len]; others give 0
  FeedbackOutputs feedback;               // optional, of plans of one softmax
  AttentionCounters* counters = nullptr;  // optional: added to
};

class Attend {
 public:
  static absl::StatusOr<Attend> Create(const AttendShape& shape, const AttendOptions& options = {});
  size_t workspace_bytes() const { return bytes_; }
  const AttendShape& shape() const { return shape_; }
  // Const, allocation-free when it succeeds. O(listed pairs * (head_dim + value_dim)).
  absl::Status Run(const AttentionPlan& plan, const AttendInputs& in, const RunContext& ctx,
                   const AttendOutputs& out) const;

 private:
  friend class AttendRun;
  // Offsets into the workspace; `worker` blocks of `stride` bytes follow the shared part.
  struct Layout {
    size_t order = 0, cost = 0, split = 0, state_m = 0, state_l = 0, state_o = 0, worker = 0;
    size_t stride = 0, q = 0, o = 0, m = 0, l = 0, kt = 0, v = 0, mask = 0, scratch = 0, bits = 0,
           row_bias = 0;
    size_t prob = 0, mass = 0, norm = 0, aq = 0, ak = 0, av = 0, counters = 0;
  };
  AttendShape shape_;
  AttendOptions options_;
  Layout at_;
  size_t bytes_ = 0;
  int64_t rows_ = 0;  // rows of the largest item
  int64_t dv_pad_ = 0;
  int64_t words_ = 0;  // 64-key words of a sequence
  int64_t slots_ = 0;  // (query or slot, head) pairs of a stored state; 0: none is stored
  int64_t max_splits_ = 1;
  int64_t max_items_ = 0;
};

// o = sum_i exp(lse_i - lse) o_i over disjoint key sets; parts with lse = -inf weigh 0. Rows of o_i
// are [rows, dv].
void MergeAttention(absl::Span<const float* const> o, absl::Span<const float* const> lse,
                    int64_t rows, int64_t dv, float* out, float* out_lse);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_ATTEND_ATTEND_H_
