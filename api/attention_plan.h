#ifndef SLUICE_API_ATTENTION_PLAN_H_
#define SLUICE_API_ATTENTION_PLAN_H_
// What sparse attention computes: a read-only view of the plan that a router wrote. A plan
// describes one chunk of queries (build, attend, drop). Routers write it through PlanBuilder
// (api/plan_builder.h); the executor in runtime/attend consumes it; CheckAttentionPlan
// (api/plan_check.h) says what must hold of it.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "sluice/api/abi/sluice_abi.h"
#include "sluice/api/tensor_view.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// Who shares a list.
enum class ListScope : uint8_t { kQueryHead, kKvHead, kAllHeads };

enum class Encoding : uint8_t {
  kBlocks,        // entries: start and len count blocks of `block` keys
  kRuns,          // entries: start and len count keys
  kTokens,        // tokens: key ids, all exact under `token_mask`
  kRankedPrefix,  // tokens: block ids by falling rank, shared per KV head; each query head takes
                  // prefix[head, tile]
  kPattern,       // no lists: the keys of the union of `terms`, in closed form
};

// What an entry stands for; skipping is not being listed.
enum class EntryState : uint8_t {
  kExact,    // raw keys
  kSummary,  // rows [start, start + len) of summary table `level`, each with logit
             // q.k*scale + log_count[row]
};

enum class MaskClass : uint8_t {
  kFull,        // every key of the entry is visible to every row of the tile
  kCausal,      // key <= query
  kLowerBound,  // query - window < key <= query
  kPermCausal,  // key_perm[key] <= query, for plans over permuted keys
  kNone,        // no mask (encoders)
};

// kPriority: falling importance, as stop rules need.
enum class EntryOrder : uint8_t { kAscending, kPriority };

enum class StopRule : uint8_t {
  kNone,
  kGain,   // stop a tile once a panel adds less than stop_tau of the normaliser in every row
  kScore,  // stop a tile once an entry's bias is below stop_tau: entry_bias holds scores, and is
           // not added to logits
};

enum class Merge : uint8_t {
  kLse,          // branches are parts of one softmax (one branch: plain)
  kWeightedSum,  // o = sum_b branch_weight[b, query, head] * o_b: gates (NSA), softmaxed scores
                 // (Superlinear)
  kMean,         // one branch whose tiles may hold a query several times: the mean of its outputs
};

struct PlanEntry {
  uint32_t start = 0;
  uint32_t len = 0;
  EntryState state = EntryState::kExact;
  MaskClass mask = MaskClass::kCausal;
  uint8_t level = 0;   // summary table (1-based) of a summary entry
  uint8_t forced = 0;  // 1: placed by a guard (sink, local, own block), not by its score
};
static_assert(sizeof(PlanEntry) == sizeof(sluice_plan_entry));

// Static patterns. Terms are OR-ed; causality is the branch's token_mask. With `block` > 1 all
// distances, strides and offsets below count blocks of keys, and a query stands in block
// position / block.
enum class PatternKind : uint8_t {
  kSink,  // key < a
  kBand,  // query - a < key; a = int(a + slope * kv_len) when slope is not 0 (MoA's spans)
  kStrideAbsolute,  // (key + b) mod a == 0 (S2-Attention's columns)
  kStrideRelative,  // (query - key) mod a == 0, a distance of at least b
  kPowersOfTwo,     // query - key is a power of two (PowerAttention)
  kDilated,         // query - key < a * b and a multiple of b
  kBox,  // keys and queries are points of extent[0..dims): a key is visible when in every
         // dimension it lies in the query's window (generalised neighbourhood attention)
};
struct PatternTerm {
  PatternKind kind = PatternKind::kSink;
  uint8_t dims = 0;
  uint8_t reserved[6] = {};
  int64_t a = 0;
  int64_t b = 0;
  int64_t c = 0;
  double slope = 0;
  int32_t extent[3] = {};
  int32_t window[3] = {};
  int32_t stride[3] = {1, 1, 1};
  int32_t dilation[3] = {1, 1, 1};
};
static_assert(sizeof(PatternTerm) == sizeof(sluice_pattern_term) &&
              offsetof(PatternTerm, slope) == offsetof(sluice_pattern_term, slope));

// CSR rows with slack: row r owns [begin[r], begin[r] + count[r]), so that rows can be written in
// parallel into fixed slots without a compaction pass.
struct PlanRows {
  absl::Span<const int64_t> begin;
  absl::Span<const uint32_t> count;
};

// A row is (list, tile). Tiles are `tile` consecutive queries of the chunk, or, with q_order, the
// queries q_order[list, tile_begin[list, t] .. tile_begin[list, t + 1]).
struct AttentionBranch {
  Encoding encoding = Encoding::kRuns;
  ListScope scope = ListScope::kKvHead;
  int64_t block = 1;   // keys per block (kBlocks, kRankedPrefix, kPattern)
  int64_t tile = 64;   // queries of a tile, at most; at most 64 when row_mask is used
  int64_t window = 0;  // kLowerBound
  int64_t num_tiles = 0;
  int64_t num_lists = 1;
  PlanRows rows;
  absl::Span<const PlanEntry> entries;
  absl::Span<const uint32_t> tokens;
  MaskClass token_mask = MaskClass::kCausal;  // of tokens, ranked blocks and patterns
  absl::Span<const uint32_t> prefix;          // kRankedPrefix: [heads, num_tiles]
  absl::Span<const float> entry_bias;         // optional, beside entries: added to their logits
  absl::Span<const uint64_t> row_mask;   // optional, beside entries or tokens: bit i = query i of
                                         // the tile wants it
  absl::Span<const int32_t> q_order;     // optional: [num_lists, order_slots] query indices
  absl::Span<const int64_t> tile_begin;  // with q_order: [num_lists, num_tiles + 1]
  int64_t order_slots = 0;
  absl::Span<const PatternTerm> terms;   // kPattern
  absl::Span<const int32_t> term_begin;  // kPattern: [num_lists + 1]
  EntryOrder order = EntryOrder::kAscending;
  StopRule stop = StopRule::kNone;
  float stop_tau = 0;
  int init_from = -1;  // weighted sums: resume from the state of an earlier branch; -1: empty

  bool ByToken() const {
    return encoding == Encoding::kTokens || encoding == Encoding::kRankedPrefix;
  }
  int64_t row_of(int64_t list, int64_t t) const { return list * num_tiles + t; }
  // Slots of a tile: the positions in the query order that it covers.
  int64_t TileBegin(int64_t list, int64_t t) const {
    return q_order.empty() ? t * tile : tile_begin[list * (num_tiles + 1) + t];
  }
  int64_t TileEnd(int64_t list, int64_t t, int64_t q_count) const {
    return q_order.empty() ? std::min(q_count, (t + 1) * tile)
                           : tile_begin[list * (num_tiles + 1) + t + 1];
  }
  // The query, an index into the chunk, at a slot.
  int64_t Query(int64_t list, int64_t slot) const {
    return q_order.empty() ? slot : q_order[list * order_slots + slot];
  }
};

// Summaries that entries refer to: row r stands for `count[r]` keys starting at `begin[r]`. They
// live in the router's state or workspace, until its next Run.
struct SummaryTable {
  KvView k, v;                        // [rows, kv_heads, d], [rows, kv_heads, dv]
  absl::Span<const float> log_count;  // [rows], or [kv_heads, rows] when per_head
  absl::Span<const uint32_t> begin,
      count;              // as log_count; may be empty where rows stand for no keys
  bool per_head = false;  // clusters differ by head
  int64_t rows() const { return k.rows; }
  int64_t at(int64_t kv, int64_t row) const { return per_head ? kv * k.rows + row : row; }
};

// Beyond these no plan goes: what readers add and multiply then stays within 64 bits.
inline constexpr int64_t kMostPlanQueries = int64_t{1} << 31;
inline constexpr int64_t kMostPlanKeys = int64_t{1} << 32;
inline constexpr int64_t kMostPlanHeads = int64_t{1} << 16;

struct AttentionPlan {
  int64_t q_begin = 0;  // absolute position of the first query
  int64_t q_count = 0;
  int64_t kv_len = 0;  // keys visible to the plan
  int32_t heads = 0;
  int32_t kv_heads = 0;
  // Optional [q_count], strictly ascending: where each query stands, for hosts that compute only
  // some tokens. Empty: query i stands at q_begin + i.
  absl::Span<const int32_t> q_positions;
  absl::Span<const AttentionBranch> branches;
  Merge merge = Merge::kLse;
  absl::Span<const float> branch_weight;  // kWeightedSum: [branches, q_count, heads]
  absl::Span<const uint32_t> key_perm;    // optional [lists of perm_scope, kv_len]: logical ->
                                          // original key; lists are logical
  ListScope perm_scope = ListScope::kAllHeads;
  absl::Span<const float> key_bias;  // optional [kv_heads, kv_len], by original key
  absl::Span<const SummaryTable> tables;

  int64_t position(int64_t i) const { return q_positions.empty() ? q_begin + i : q_positions[i]; }
  // The permutation that a query head's lists are written in.
  const uint32_t* Perm(int64_t head) const {
    if (key_perm.empty()) return nullptr;
    const int64_t list = perm_scope == ListScope::kQueryHead ? head
                         : perm_scope == ListScope::kKvHead  ? head / (heads / kv_heads)
                                                             : 0;
    return key_perm.data() + list * kv_len;
  }
};
inline int64_t NumLists(ListScope scope, int64_t heads, int64_t kv_heads) {
  return scope == ListScope::kQueryHead ? heads : scope == ListScope::kKvHead ? kv_heads : 1;
}
// Tiles that hold so many queries. A decode step's one query is not worth a division.
inline int64_t TilesOf(int64_t queries, int64_t tile) {
  if (queries <= tile) return queries > 0 ? 1 : 0;
  return (queries + tile - 1) / tile;
}
// The list of a branch that a query head reads.
inline int64_t ListOf(const AttentionPlan& p, const AttentionBranch& b, int64_t head) {
  return b.scope == ListScope::kQueryHead ? head
         : b.scope == ListScope::kKvHead  ? head / (p.heads / p.kv_heads)
                                          : 0;
}

// Measured, not estimated. Pairs are (query head, query, key).
struct AttentionCounters {
  int64_t exact_pairs = 0;     // evaluated and visible under the mask
  int64_t summary_pairs = 0;   // summary rows evaluated
  int64_t causal_pairs = 0;    // what dense attention would evaluate
  int64_t computed_pairs = 0;  // evaluated including masked lanes: the work really done
  int64_t kv_bytes = 0;        // key and value bytes read
  int64_t macs = 0;            // multiply-adds of QK and PV over computed pairs
  int64_t stopped_panels = 0;  // panels never visited because of a stop rule
  int64_t feedback_pairs = 0;  // evaluated once more because a router asked for feedback
  double density() const {
    return causal_pairs > 0 ? static_cast<double>(exact_pairs) / static_cast<double>(causal_pairs)
                            : 0;
  }
  // What was counted since `before`.
  AttentionCounters Since(const AttentionCounters& before) const {
    return {.exact_pairs = exact_pairs - before.exact_pairs,
            .summary_pairs = summary_pairs - before.summary_pairs,
            .causal_pairs = causal_pairs - before.causal_pairs,
            .computed_pairs = computed_pairs - before.computed_pairs,
            .kv_bytes = kv_bytes - before.kv_bytes,
            .macs = macs - before.macs,
            .stopped_panels = stopped_panels - before.stopped_panels,
            .feedback_pairs = feedback_pairs - before.feedback_pairs};
  }
  void Add(const AttentionCounters& o) {
    exact_pairs += o.exact_pairs;
    summary_pairs += o.summary_pairs;
    causal_pairs += o.causal_pairs;
    computed_pairs += o.computed_pairs;
    kv_bytes += o.kv_bytes;
    macs += o.macs;
    stopped_panels += o.stopped_panels;
    feedback_pairs += o.feedback_pairs;
  }
};

// Key range [begin, end) that an exact entry covers, in keys; of a summary entry, its table rows.
inline void EntryKeys(const AttentionBranch& b, const PlanEntry& e, int64_t kv_len, int64_t* begin,
                      int64_t* end) {
  const bool blocks = b.encoding == Encoding::kBlocks && e.state == EntryState::kExact;
  const int64_t unit = blocks ? b.block : 1;
  *begin = static_cast<int64_t>(e.start) * unit;
  *end = *begin + static_cast<int64_t>(e.len) * unit;
  if (e.state == EntryState::kExact) *end = std::min(*end, kv_len);  // the last block may be ragged
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_ATTENTION_PLAN_H_
