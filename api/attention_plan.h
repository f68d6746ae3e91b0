#ifndef SLUICE_API_ATTENTION_PLAN_H_
#define SLUICE_API_ATTENTION_PLAN_H_
// The one plan format of sparse attention: which keys each query tile attends to, and how. A plan
// describes one chunk of queries (build, attend, drop); routers write it, the executor in
// runtime/attend consumes it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/abi/sluice_abi.h"
#include "sluice/api/tensor_view.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// Who shares a list. A list row is (list, query tile); tiles are `tile` consecutive queries of the
// chunk.
enum class ListScope : uint8_t { kQueryHead, kKvHead, kAllHeads };

enum class Encoding : uint8_t {
  kBlocks,        // entries: start and len count blocks of `unit` keys
  kRuns,          // entries: start and len count keys
  kTokens,        // tokens: key ids, all Exact under `token_mask`
  kRankedPrefix,  // tokens: block ids by falling rank, shared per KV head; each query head takes
                  // prefix[head, tile]
};

// What an entry stands for; skipping is not being listed.
enum class EntryState : uint8_t {
  kExact,   // raw keys
  kApprox,  // rows [start, start + len) of summary table `level`, each with logit q.k*scale +
            // log_count[row]
};

enum class MaskClass : uint8_t {
  kFull,  // every key of the entry is visible to every row of the tile; the validator checks key <=
          // first query
  kCausal,      // key <= query
  kLowerBound,  // query - window < key <= query
  kPermCausal,  // kperm[key] <= query, for plans over permuted keys
  kNone,        // no mask (encoders)
};

enum class EntryOrder : uint8_t {
  kAscending,
  kPriority
};  // kPriority: falling importance, as stop rules need
enum class StopRule : uint8_t {
  kNone,
  kGain
};  // kGain: stop a tile once a panel adds < stop_tau of l in every row

enum class Merge : uint8_t {
  kLse,          // branches are parts of one softmax (one branch: plain)
  kWeightedSum,  // o = sum_b branch_weight[b, query, head] * o_b: gates (NSA) or softmaxed scores
                 // (Superlinear)
};

struct PlanEntry {
  uint32_t start = 0;
  uint32_t len = 0;
  EntryState state = EntryState::kExact;
  MaskClass mask = MaskClass::kCausal;
  uint8_t level = 0;   // summary table (1-based) of an Approx entry
  uint8_t forced = 0;  // 1: placed by a guard (sink, local, own block), not by its score
};

// CSR rows with slack: row r owns [begin[r], begin[r] + count[r]), so that rows can be written in
// parallel into fixed slots without a compaction pass.
struct PlanRows {
  absl::Span<const uint32_t> begin, count;
};

struct AttentionBranch {
  Encoding encoding = Encoding::kRuns;
  int64_t unit = 1;  // keys per block (kBlocks, kRankedPrefix)
  PlanRows rows;     // n_list * n_tile
  absl::Span<const PlanEntry> entries;
  absl::Span<const uint32_t> tokens;
  MaskClass token_mask = MaskClass::kCausal;
  absl::Span<const uint32_t> prefix;   // kRankedPrefix: [heads, n_tile]
  absl::Span<const float> entry_bias;  // optional, beside entries: added to the logits of the entry
  absl::Span<const uint64_t>
      row_mask;  // optional, beside entries or tokens: bit i = query i of the tile wants it
  EntryOrder order = EntryOrder::kAscending;
  StopRule stop = StopRule::kNone;
  float stop_tau = 0;
  int init_from = -1;  // resume from the state of an earlier branch of the plan; -1: empty
};

// Which queries a plan is for, and how its rows lie. Small, since a router makes one a call.
struct PlanHeader {
  int64_t q_begin = 0;  // absolute position of the first query
  int64_t q_count = 0;
  int64_t kv_len = 0;  // keys visible to the plan
  int32_t heads = 0, kv_heads = 0;
  ListScope scope = ListScope::kKvHead;
  int64_t tile = 64;   // queries per list row, at most 64 when row_mask is used
  int64_t window = 0;  // kLowerBound
  // Optional [q_count], strictly ascending: where each query stands, for hosts that compute only
  // some tokens. Empty: query i stands at q_begin + i.
  absl::Span<const int32_t> q_positions;

  int64_t position(int64_t i) const { return q_positions.empty() ? q_begin + i : q_positions[i]; }
  int64_t num_tiles() const { return tile > 0 ? (q_count + tile - 1) / tile : 0; }
  int64_t num_lists() const {
    return scope == ListScope::kQueryHead ? heads : scope == ListScope::kKvHead ? kv_heads : 1;
  }
};

struct AttentionPlan : PlanHeader {
  absl::Span<const AttentionBranch> branches;
  Merge merge = Merge::kLse;
  absl::Span<const float> branch_weight;  // kWeightedSum: [branches, q_count, heads]
  absl::Span<const uint32_t> kperm;       // optional: logical -> original key; lists are logical
  absl::Span<const float> key_bias;       // optional: [kv_heads, kv_len], by original key
};

// Summaries that Approx entries refer to: row r stands for `count[r]` keys starting at `begin[r]`.
struct SummaryTable {
  KvView k, v;                              // [rows, kv_heads, d], [rows, kv_heads, dv]
  absl::Span<const float> log_count;        // [rows]
  absl::Span<const uint32_t> begin, count;  // [rows]; used by the validator and the pair counters
};

// Measured, not estimated. Pairs are (query head, query, key).
struct AttentionCounters {
  int64_t exact_pairs = 0;     // evaluated and visible under the mask
  int64_t approx_pairs = 0;    // summary rows evaluated
  int64_t causal_pairs = 0;    // what dense attention would evaluate
  int64_t computed_pairs = 0;  // evaluated including masked lanes: the work really done
  int64_t kv_bytes = 0;        // key and value bytes read
  int64_t macs = 0;            // multiply-adds of QK and PV over computed pairs
  int64_t stopped_panels = 0;  // panels never visited because of a stop rule
  double density() const {
    return causal_pairs > 0 ? static_cast<double>(exact_pairs) / static_cast<double>(causal_pairs)
                            : 0;
  }
  void Add(const AttentionCounters& o) {
    exact_pairs += o.exact_pairs;
    approx_pairs += o.approx_pairs;
    causal_pairs += o.causal_pairs;
    computed_pairs += o.computed_pairs;
    kv_bytes += o.kv_bytes;
    macs += o.macs;
    stopped_panels += o.stopped_panels;
  }
};

// What a router fills: one branch, in storage that belongs to a host and was sized by MakePlan. The
// record is the one of the plug-in ABI, so that a router writes the same memory wherever it was
// built. Each row has a fixed slot.
class PlanWriter {
 public:
  explicit PlanWriter(sluice_attention_plan* record) : r_(record) {}
  // Starts a plan; call before filling rows. Fails when the plan has more rows than were reserved.
  // The positions of the header are borrowed until the plan has been used.
  absl::Status Begin(const PlanHeader& h, Encoding encoding, int64_t unit) {
    r_->q_begin = h.q_begin;
    r_->q_count = h.q_count;
    r_->kv_len = h.kv_len;
    r_->tile = h.tile;
    r_->window = h.window;
    r_->heads = h.heads;
    r_->kv_heads = h.kv_heads;
    r_->scope = static_cast<uint8_t>(h.scope);
    r_->unit = unit;
    r_->encoding = static_cast<uint8_t>(encoding);
    r_->token_mask = static_cast<uint8_t>(MaskClass::kCausal);
    r_->order = static_cast<uint8_t>(EntryOrder::kAscending);
    r_->stop = static_cast<uint8_t>(StopRule::kNone);
    r_->stop_tau = 0;
    q_positions_ = h.q_positions;
    tiles_ = h.num_tiles();
    const int64_t rows = h.num_lists() * tiles_;
    if (rows > r_->max_rows) {
      return absl::ResourceExhaustedError(absl::StrCat("the plan has ", rows, " rows but ",
                                                       r_->max_rows, " were reserved by MakePlan"));
    }
    slots_ = ByToken(encoding) ? r_->token_slots : r_->entry_slots;
    for (int64_t row = 0; row < rows; ++row) {
      r_->row_begin[row] = static_cast<uint32_t>(row * slots_);
      r_->row_count[row] = 0;
    }
    return absl::OkStatus();
  }
  int64_t row_of(int64_t list, int64_t tile) const { return list * tiles_ + tile; }
  int64_t slots() const { return slots_; }
  // Storage of one row; different rows may be filled by different threads.
  PlanEntry* entries(int64_t row) {
    return reinterpret_cast<PlanEntry*>(r_->entries) + row * slots_;
  }
  uint32_t* tokens(int64_t row) { return r_->tokens + row * slots_; }
  uint32_t* prefix() { return r_->prefix; }
  void set_count(int64_t row, int64_t n) { r_->row_count[row] = static_cast<uint32_t>(n); }
  void set_token_mask(MaskClass m) { r_->token_mask = static_cast<uint8_t>(m); }

  // For those who pass the record on: what another wrote into it, over the positions of its
  // queries.
  sluice_attention_plan* record() { return r_; }
  absl::Status Adopt(absl::Span<const int32_t> q_positions);

  static constexpr bool ByToken(Encoding e) {
    return e == Encoding::kTokens || e == Encoding::kRankedPrefix;
  }

 protected:
  sluice_attention_plan* r_;
  absl::Span<const int32_t> q_positions_;
  int64_t tiles_ = 0, slots_ = 0;
};
static_assert(sizeof(PlanEntry) == sizeof(sluice_plan_entry) &&
              alignof(PlanEntry) == alignof(sluice_plan_entry));

// Checks a record that a stranger has filled, as far as reading it safely needs. O(rows).
inline absl::Status PlanWriter::Adopt(absl::Span<const int32_t> q_positions) {
  const sluice_attention_plan& r = *r_;
  if (r.scope > 2 || r.encoding > 3 || r.token_mask > 4 || r.order > 1 || r.stop > 1 ||
      r.tile <= 0 || r.unit <= 0 || r.q_count < 0)
    return absl::InternalError("the plan has an unknown scope, encoding, mask or order");
  q_positions_ = q_positions;
  tiles_ = (r.q_count + r.tile - 1) / r.tile;
  const auto encoding = static_cast<Encoding>(r.encoding);
  const int64_t lists = r.scope == 0   ? r.heads
                        : r.scope == 1 ? r.kv_heads
                                       : 1,
                rows = lists * tiles_;
  slots_ = ByToken(encoding) ? r.token_slots : r.entry_slots;
  if (rows < 0 || rows > r.max_rows)
    return absl::InternalError(
        absl::StrCat("the plan has ", rows, " rows of at most ", r.max_rows));
  for (int64_t row = 0; row < rows; ++row) {
    if (int64_t{r.row_begin[row]} + r.row_count[row] > r.max_rows * slots_)
      return absl::InternalError(absl::StrCat("row ", row, " has ", r.row_count[row],
                                              " entries at ", r.row_begin[row], " of ",
                                              r.max_rows * slots_));
  }
  return absl::OkStatus();
}

// Owns the storage of a one-branch plan. Sized once (may allocate), then filled by any number of
// Runs without allocating.
class AttentionPlanBuffer : public PlanWriter {
 public:
  AttentionPlanBuffer() : PlanWriter(&record_) { record_.struct_size = sizeof record_; }
  AttentionPlanBuffer(const AttentionPlanBuffer&) = delete;  // the writer points into it
  AttentionPlanBuffer& operator=(const AttentionPlanBuffer&) = delete;
  // `slots` entries (kBlocks, kRuns) or tokens (kTokens, kRankedPrefix) per row.
  void Reserve(int64_t max_rows, int64_t entry_slots, int64_t token_slots, int64_t max_prefix) {
    begin_.resize(max_rows);
    count_.resize(max_rows);
    entries_.resize(max_rows * entry_slots);
    tokens_.resize(max_rows * token_slots);
    prefix_.resize(max_prefix);
    record_.row_begin = begin_.data();
    record_.row_count = count_.data();
    record_.max_rows = max_rows;
    record_.entries = reinterpret_cast<sluice_plan_entry*>(entries_.data());
    record_.entry_slots = entry_slots;
    record_.tokens = tokens_.data();
    record_.token_slots = token_slots;
    record_.prefix = prefix_.data();
    record_.prefix_slots = max_prefix;
  }
  // The plan that was written last; valid until the next.
  const AttentionPlan& plan() {
    const sluice_attention_plan& r = record_;
    plan_.q_begin = r.q_begin;
    plan_.q_count = r.q_count;
    plan_.kv_len = r.kv_len;
    plan_.tile = r.tile;
    plan_.window = r.window;
    plan_.heads = r.heads;
    plan_.kv_heads = r.kv_heads;
    plan_.scope = static_cast<ListScope>(r.scope);
    plan_.q_positions = q_positions_;
    branch_.encoding = static_cast<Encoding>(r.encoding);
    branch_.unit = r.unit;
    branch_.token_mask = static_cast<MaskClass>(r.token_mask);
    branch_.order = static_cast<EntryOrder>(r.order);
    branch_.stop = static_cast<StopRule>(r.stop);
    branch_.stop_tau = r.stop_tau;
    const auto rows = static_cast<size_t>(plan_.num_lists() * plan_.num_tiles());
    branch_.rows = {absl::MakeConstSpan(begin_).first(rows),
                    absl::MakeConstSpan(count_).first(rows)};
    branch_.entries = entries_;
    branch_.tokens = tokens_;
    branch_.prefix = prefix_;
    plan_.branches = absl::MakeConstSpan(&branch_, 1);
    return plan_;
  }

 private:
  sluice_attention_plan record_{};
  std::vector<uint32_t> begin_, count_, tokens_, prefix_;
  std::vector<PlanEntry> entries_;
  AttentionBranch branch_;
  AttentionPlan plan_;
};

// Key range [begin, end) that an entry covers, in keys. Approx entries: the represented keys of
// their rows.
inline void EntryKeys(const AttentionBranch& b, const PlanEntry& e, int64_t kv_len, int64_t* begin,
                      int64_t* end) {
  const int64_t unit =
      b.encoding == Encoding::kBlocks && e.state == EntryState::kExact ? b.unit : 1;
  *begin = static_cast<int64_t>(e.start) * unit;
  *end = *begin + static_cast<int64_t>(e.len) * unit;
  if (e.state == EntryState::kExact) *end = std::min(*end, kv_len);  // the last block may be ragged
}

// Checks the whole plan: shapes, ranges, order, uniqueness, disjointness inside a branch (and
// between branches that share one softmax by init), mask classes. Allocates; meant for tests and
// debug builds. O(entries log entries).
inline absl::Status ValidateAttentionPlan(const AttentionPlan& p,
                                          absl::Span<const SummaryTable> tables = {}) {
  const auto bad = [](auto&&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("attention plan: ", parts...));
  };
  if (p.q_count < 0 || p.kv_len < 0 || p.q_begin < 0) return bad("negative size");
  if (!p.q_positions.empty()) {
    if (p.q_positions.size() != static_cast<size_t>(p.q_count))
      return bad("q_positions must be [q_count]");
    for (size_t i = 0; i < p.q_positions.size(); ++i) {
      if (p.q_positions[i] < (i == 0 ? 0 : p.q_positions[i - 1] + 1) ||
          p.q_positions[i] >= p.kv_len)
        return bad("q_positions must ascend strictly within the keys");
    }
  }
  if (p.kv_len > std::numeric_limits<uint32_t>::max())
    return bad("kv_len ", p.kv_len, " does not fit 32 bits");
  if (p.heads <= 0 || p.kv_heads <= 0 || p.heads % p.kv_heads != 0) {
    return bad(p.heads, " query heads and ", p.kv_heads,
               " KV heads: the first must be a multiple of the second");
  }
  if (p.tile <= 0) return bad("tile is ", p.tile, ", must be positive");
  if (p.branches.empty()) return bad("no branches");
  if (!p.kperm.empty()) {
    if (p.kperm.size() != static_cast<size_t>(p.kv_len))
      return bad("kperm has ", p.kperm.size(), " entries, kv_len is ", p.kv_len);
    std::vector<bool> seen(p.kperm.size());
    for (uint32_t k : p.kperm) {
      if (k >= p.kperm.size() || seen[k]) return bad("kperm is not a permutation");
      seen[k] = true;
    }
  }
  if (!p.key_bias.empty() && p.key_bias.size() != static_cast<size_t>(p.kv_len * p.kv_heads))
    return bad("key_bias must be [kv_heads, kv_len]");
  if (p.merge == Merge::kWeightedSum &&
      p.branch_weight.size() != p.branches.size() * static_cast<size_t>(p.q_count * p.heads)) {
    return bad("branch_weight must be [branches, q_count, heads]");
  }
  const int64_t rows = p.num_lists() * p.num_tiles();
  for (size_t bi = 0; bi < p.branches.size(); ++bi) {
    const AttentionBranch& b = p.branches[bi];
    if (b.unit <= 0) return bad("branch ", bi, ": unit is ", b.unit, ", must be positive");
    if (b.init_from >= static_cast<int>(bi))
      return bad("branch ", bi, ": init_from must name an earlier branch");
    if (b.stop != StopRule::kNone && b.order != EntryOrder::kPriority)
      return bad("branch ", bi, ": a stop rule needs priority order");
    const bool by_token = b.encoding == Encoding::kTokens || b.encoding == Encoding::kRankedPrefix;
    const int64_t want_rows =
        b.encoding == Encoding::kRankedPrefix ? p.kv_heads * p.num_tiles() : rows;
    if (b.encoding == Encoding::kRankedPrefix && p.scope != ListScope::kKvHead)
      return bad("branch ", bi, ": a ranked prefix needs KvHead scope");
    if (static_cast<int64_t>(b.rows.begin.size()) < want_rows ||
        static_cast<int64_t>(b.rows.count.size()) < want_rows) {
      return bad("branch ", bi, " has ", b.rows.begin.size(), " rows, wanted ", want_rows);
    }
    const size_t pool = by_token ? b.tokens.size() : b.entries.size();
    if (!b.row_mask.empty() && (b.row_mask.size() != pool || p.tile > 64))
      return bad("branch ", bi, ": row_mask needs one word an entry and a tile of at most 64");
    if (!b.entry_bias.empty() && b.entry_bias.size() != pool)
      return bad("branch ", bi, ": entry_bias needs one value an entry");
    if (b.encoding == Encoding::kRankedPrefix &&
        b.prefix.size() < static_cast<size_t>(p.heads * p.num_tiles()))
      return bad("branch ", bi, ": prefix must be [heads, tiles]");
    for (int64_t r = 0; r < want_rows; ++r) {
      const size_t begin = b.rows.begin[r], count = b.rows.count[r];
      if (begin + count > pool)
        return bad("branch ", bi, " row ", r, " reaches entry ", begin + count, " of ", pool);
      const int64_t tile = r % p.num_tiles();
      const int64_t first_q = p.position(tile * p.tile);
      const int64_t last_q = p.position(std::min(p.q_count, (tile + 1) * p.tile) - 1);
      if (b.encoding == Encoding::kRankedPrefix) {
        std::vector<uint32_t> ids(b.tokens.begin() + static_cast<int64_t>(begin),
                                  b.tokens.begin() + static_cast<int64_t>(begin + count));
        std::sort(ids.begin(), ids.end());
        for (size_t i = 0; i < ids.size(); ++i) {
          if (static_cast<int64_t>(ids[i]) * b.unit >= p.kv_len)
            return bad("branch ", bi, " row ", r, " ranks block ", ids[i], " past the last key");
          if (i > 0 && ids[i] == ids[i - 1])
            return bad("branch ", bi, " row ", r, " ranks block ", ids[i], " twice");
        }
        const int64_t g = p.heads / p.kv_heads, kv = r / p.num_tiles();
        for (int64_t h = kv * g; h < (kv + 1) * g; ++h) {
          if (b.prefix[h * p.num_tiles() + tile] > count)
            return bad("branch ", bi, ": prefix of head ", h, " is longer than its ranking");
        }
        continue;
      }
      if (by_token) {
        std::vector<uint32_t> ids(b.tokens.begin() + static_cast<int64_t>(begin),
                                  b.tokens.begin() + static_cast<int64_t>(begin + count));
        if (b.order == EntryOrder::kPriority) std::sort(ids.begin(), ids.end());
        for (size_t i = 0; i < ids.size(); ++i) {
          if (ids[i] >= p.kv_len)
            return bad("branch ", bi, " row ", r, " names key ", ids[i], " of ", p.kv_len);
          if (i > 0 && ids[i] == ids[i - 1])
            return bad("branch ", bi, " row ", r, " names key ", ids[i], " twice");
          if (i > 0 && ids[i] < ids[i - 1]) return bad("branch ", bi, " row ", r, " is not sorted");
          if (b.token_mask == MaskClass::kFull && static_cast<int64_t>(ids[i]) > first_q)
            return bad("branch ", bi, " row ", r, " shows key ", ids[i], " to query ", first_q);
        }
        continue;
      }
      std::vector<std::pair<int64_t, int64_t>> spans;
      int64_t previous = -1;
      for (size_t i = begin; i < begin + count; ++i) {
        const PlanEntry& e = b.entries[i];
        if (e.len == 0) return bad("branch ", bi, " row ", r, " has an empty entry");
        int64_t lo = 0, hi = 0;
        EntryKeys(b, e, p.kv_len, &lo, &hi);
        if (e.state == EntryState::kApprox) {
          if (e.level == 0 || e.level > tables.size())
            return bad("branch ", bi, " row ", r, " uses table ", static_cast<int>(e.level), " of ",
                       tables.size());
          const SummaryTable& t = tables[e.level - 1u];
          if (hi > static_cast<int64_t>(t.begin.size()))
            return bad("branch ", bi, " row ", r, " reads table row ", hi - 1, " of ",
                       t.begin.size());
          for (int64_t s = lo; s < hi; ++s) {
            const int64_t kb = t.begin[s], ke = kb + t.count[s];
            if (e.mask != MaskClass::kNone && ke - 1 > first_q)
              return bad("branch ", bi, " row ", r, " summarises key ", ke - 1, " which query ",
                         first_q, " may not see");
            spans.emplace_back(kb, ke);
          }
          continue;
        }
        if (lo >= p.kv_len || hi <= lo)
          return bad("branch ", bi, " row ", r, " starts at key ", lo, " of ", p.kv_len);
        if (b.encoding == Encoding::kRuns && static_cast<int64_t>(e.start) + e.len > p.kv_len)
          return bad("branch ", bi, " row ", r, " reaches key ",
                     static_cast<int64_t>(e.start) + e.len - 1, " of ", p.kv_len);
        if (e.mask == MaskClass::kFull && p.kperm.empty() && hi - 1 > first_q)
          return bad("branch ", bi, " row ", r, " shows key ", hi - 1, " to query ", first_q);
        if (e.mask == MaskClass::kPermCausal && p.kperm.empty())
          return bad("branch ", bi, " row ", r, " is PermCausal without kperm");
        if (e.mask == MaskClass::kLowerBound && p.window <= 0)
          return bad("branch ", bi, " row ", r, " is LowerBound with window ", p.window);
        if (e.mask == MaskClass::kCausal && lo > last_q)
          return bad("branch ", bi, " row ", r, " lists key ", lo, " that no query up to ", last_q,
                     " may see");
        if (b.order == EntryOrder::kAscending && lo < previous)
          return bad("branch ", bi, " row ", r, " is not sorted");
        previous = lo;
        spans.emplace_back(lo, hi);
      }
      std::sort(spans.begin(), spans.end());
      for (size_t i = 1; i < spans.size(); ++i) {
        if (spans[i].first < spans[i - 1].second)
          return bad("branch ", bi, " row ", r, " covers key ", spans[i].first, " twice");
      }
    }
  }
  return absl::OkStatus();
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_ATTENTION_PLAN_H_
