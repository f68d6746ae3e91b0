#ifndef SLUICE_API_PLAN_BUILDER_H_
#define SLUICE_API_PLAN_BUILDER_H_
// How a router writes an AttentionPlan. MakePlan declares what each branch needs (BranchLayout),
// the host makes a PlanStorage of that size once, and every Run writes through the PlanBuilder over
// it, without allocating. The storage is the record of the plug-in ABI, so that a router writes the
// same memory wherever it was built, and reading it back (plan()) is the one codec between both
// worlds.
#include <array>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/attention_plan.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// Storage of one branch; laid out as sluice_branch_layout.
struct BranchLayout {
  int64_t rows = 0;          // lists * tiles of one chunk; kPattern: lists
  int64_t entry_slots = 0;   // per row (kBlocks, kRuns)
  int64_t token_slots = 0;   // per row (kTokens, kRankedPrefix)
  int64_t prefix_slots = 0;  // kRankedPrefix: heads * tiles
  int64_t order_slots = 0;   // > 0: tiles hold queries in an order of their own; slots of all lists
  int32_t terms = 0;         // kPattern: terms of all lists
  uint8_t bias = 0;          // 1: with entry_bias
  uint8_t mask = 0;          // 1: with row_mask
  uint8_t reserved[2] = {};
};
static_assert(sizeof(BranchLayout) == sizeof(sluice_branch_layout) &&
              offsetof(BranchLayout, mask) == offsetof(sluice_branch_layout, mask));

// Storage of a whole plan.
struct PlanLayout {
  static constexpr int kMaxBranches = SLUICE_MAX_BRANCHES;
  std::array<BranchLayout, kMaxBranches> branches;
  int num_branches = 0;
  int64_t max_tile = 1;      // queries of the largest tile
  int64_t weight_slots = 0;  // weighted sums: branches * queries * heads
  int64_t perm_slots = 0;    // permuted keys: lists * keys
  int64_t bias_slots = 0;    // key bias: kv_heads * keys

  void AddBranch(const BranchLayout& b) { branches[num_branches++] = b; }
  // What serves either plan.
  void Cover(const PlanLayout& o) {
    for (int i = 0; i < o.num_branches; ++i) {
      BranchLayout& to = branches[i];
      const BranchLayout& from = o.branches[i];
      to.rows = std::max(to.rows, from.rows);
      to.entry_slots = std::max(to.entry_slots, from.entry_slots);
      to.token_slots = std::max(to.token_slots, from.token_slots);
      to.prefix_slots = std::max(to.prefix_slots, from.prefix_slots);
      to.order_slots = std::max(to.order_slots, from.order_slots);
      to.terms = std::max(to.terms, from.terms);
      to.bias = std::max(to.bias, from.bias);
      to.mask = std::max(to.mask, from.mask);
    }
    num_branches = std::max(num_branches, o.num_branches);
    max_tile = std::max(max_tile, o.max_tile);
    weight_slots = std::max(weight_slots, o.weight_slots);
    perm_slots = std::max(perm_slots, o.perm_slots);
    bias_slots = std::max(bias_slots, o.bias_slots);
  }
};

// What a branch is, said before its rows are filled.
struct BranchSpec {
  Encoding encoding = Encoding::kRuns;
  ListScope scope = ListScope::kKvHead;
  int64_t tile = 64;       // queries per row
  int64_t block = 1;       // keys per block
  int64_t num_tiles = -1;  // with an own query order; -1: consecutive tiles over all queries
  MaskClass token_mask = MaskClass::kCausal;
  int64_t window = 0;  // kLowerBound
  EntryOrder order = EntryOrder::kAscending;
  StopRule stop = StopRule::kNone;
  float stop_tau = 0;
  int init_from = -1;
  bool bias = false;  // entry_bias is written for every entry
  bool mask = false;  // row_mask is written for every entry
};

// Positions of the first and last query of a tile.
struct TileQueries {
  int64_t first = 0;
  int64_t last = 0;
  int64_t count() const { return last - first + 1; }
};

// Fills the rows of one branch; different rows may be filled by different threads.
class BranchWriter {
 public:
  BranchWriter() = default;
  BranchWriter(sluice_plan_branch* r, const sluice_attention_plan* plan,
               absl::Span<const int32_t> q_positions)
      : r_(r),
        plan_(plan),
        q_positions_(q_positions),
        lists_(NumLists(static_cast<ListScope>(r->scope), plan->heads, plan->kv_heads)),
        slots_(r->encoding >= static_cast<uint8_t>(Encoding::kTokens) ? r->layout.token_slots
                                                                      : r->layout.entry_slots) {}
  int64_t num_lists() const { return lists_; }
  int64_t num_tiles() const { return r_->num_tiles; }
  int64_t tile() const { return r_->tile; }
  int64_t q_count() const { return plan_->q_count; }
  int64_t kv_len() const { return plan_->kv_len; }
  int64_t row_of(int64_t list, int64_t tile) const { return list * r_->num_tiles + tile; }
  int64_t slots() const { return slots_; }
  int64_t position(int64_t i) const {
    return q_positions_.empty() ? plan_->q_begin + i : q_positions_[i];
  }
  // Of a tile of consecutive queries.
  TileQueries Queries(int64_t tile) const {
    const int64_t begin = tile * r_->tile;
    const int64_t end = std::min(plan_->q_count, begin + r_->tile);
    return {position(begin), position(end - 1)};
  }

  PlanEntry* entries(int64_t row) {
    return reinterpret_cast<PlanEntry*>(r_->entries) + row * slots_;
  }
  uint32_t* tokens(int64_t row) { return r_->tokens + row * slots_; }
  float* bias(int64_t row) { return r_->entry_bias + row * slots_; }
  uint64_t* mask(int64_t row) { return r_->row_mask + row * slots_; }
  void set_count(int64_t row, int64_t n) { r_->row_count[row] = static_cast<uint32_t>(n); }
  // The row is what lies at [at, at + n) of the branch's storage, counted from row 0's; rows may
  // share a list.
  void set_row(int64_t row, int64_t at, int64_t n) {
    r_->row_begin[row] = at;
    set_count(row, n);
  }
  int64_t count(int64_t row) const { return r_->row_count[row]; }
  uint32_t* prefix() { return r_->prefix; }
  // [num_tiles + 1] and [order_slots / num_lists] of a list, for tiles in an order of their own.
  int64_t* tile_begin(int64_t list) { return r_->tile_begin + list * (r_->num_tiles + 1); }
  int32_t* q_order(int64_t list) { return r_->q_order + list * (r_->layout.order_slots / lists_); }
  // kPattern: appends a term to a list; lists in rising order.
  absl::Status AddTerm(int64_t list, const PatternTerm& term) {
    const int32_t at = r_->term_begin[lists_];
    if (at >= r_->layout.terms) {
      return absl::ResourceExhaustedError(
          absl::StrCat("a pattern of more than the ", at, " terms that MakePlan reserved"));
    }
    std::memcpy(static_cast<void*>(r_->terms + at), &term, sizeof term);
    for (int64_t l = list + 1; l <= lists_; ++l) r_->term_begin[l] = at + 1;
    return absl::OkStatus();
  }

 private:
  sluice_plan_branch* r_ = nullptr;
  const sluice_attention_plan* plan_ = nullptr;
  absl::Span<const int32_t> q_positions_;
  int64_t lists_ = 0;
  int64_t slots_ = 0;
};

class PlanBuilder {
 public:
  explicit PlanBuilder(sluice_attention_plan* record) : r_(record) {}
  PlanBuilder(const PlanBuilder&) = delete;  // the plan's spans point into it
  PlanBuilder& operator=(const PlanBuilder&) = delete;

  // Starts a plan over q_count queries. The positions are borrowed until the plan has been used.
  void Begin(int64_t q_begin, int64_t q_count, int64_t kv_len, int heads, int kv_heads,
             absl::Span<const int32_t> q_positions = {}, Merge merge = Merge::kLse) {
    borrowed_ = nullptr;
    adopted_ = false;
    read_ = false;
    q_positions_ = q_positions;
    r_->q_begin = q_begin;
    r_->q_count = q_count;
    r_->kv_len = kv_len;
    r_->heads = heads;
    r_->kv_heads = kv_heads;
    r_->num_branches = 0;
    r_->num_tables = 0;
    r_->merge = static_cast<uint8_t>(merge);
    r_->has_perm = 0;
    r_->has_key_bias = 0;
  }
  // Adds the next branch with empty rows. Fails when MakePlan reserved less.
  absl::StatusOr<BranchWriter> AddBranch(const BranchSpec& spec);

  // [num_branches, q_count, heads], for weighted sums.
  float* branch_weights() { return r_->branch_weight; }
  // [lists of the scope, kv_len]; lists of every branch are then in logical keys.
  uint32_t* UsePermutation(ListScope scope) {
    read_ = false;
    r_->has_perm = 1;
    r_->perm_scope = static_cast<uint8_t>(scope);
    return r_->key_perm;
  }
  // [kv_heads, kv_len], natural log units, by original key.
  float* UseKeyBias() {
    read_ = false;
    r_->has_key_bias = 1;
    return r_->key_bias;
  }
  // Publishes summaries; returns the level that entries name. They must outlive the plan: in the
  // router's state or workspace.
  absl::StatusOr<uint8_t> AddTable(const SummaryTable& table);

  // Makes this plan that of another builder, as it stands (reuse across layers and steps).
  void Borrow(PlanBuilder& other) { borrowed_ = &other; }
  // Grows every row of a one-query plan by the keys [kv_len, to): what a reused decode list lacks.
  absl::Status Extend(int64_t to);

  // For those who pass the record on, to be written.
  sluice_attention_plan* record() {
    read_ = false;
    return r_;
  }
  // After a stranger filled the record, over the positions of its queries: whether its storage is
  // what it was given and nothing that plan() makes of it is larger. Rows and what they say are
  // api/plan_check.h's, which must be asked before anything follows them.
  absl::Status Adopt(absl::Span<const int32_t> q_positions);
  // The plan that was written last; valid until the next. Allocation-free.
  const AttentionPlan& plan() {
    if (borrowed_ != nullptr) return borrowed_->plan();
    if (read_) return view_->plan;
    return Read();
  }

 protected:
  // What a stranger may not have changed; null where the record itself is a stranger's.
  const sluice_attention_plan* given_ = nullptr;
  const sluice_plan_branch* given_branches_ = nullptr;
  // Borders of the tiles of an own order: one more a list than it has tiles.
  static int64_t TileBorders(int64_t rows) { return 2 * rows + 2; }

 private:
  // What plan() reads the record into. Made by the first plan(): plug-ins, which only write, build
  // a builder in every call.
  struct View {
    std::array<AttentionBranch, PlanLayout::kMaxBranches> branches;
    std::array<SummaryTable, SLUICE_MAX_TABLES> tables;
    AttentionPlan plan;
  };
  const AttentionPlan& Read();
  absl::Status CheckBranch(int i) const;
  // Of a stranger's record. Out of line: it is read on the way of every call, and seldom foul.
  template <class... Why>
  [[gnu::cold, gnu::noinline]] static absl::Status Foul(const Why&... why) {
    return absl::InternalError(absl::StrCat(why...));
  }
  absl::Status TooFew(absl::string_view what, int64_t want, int64_t have) const {
    return absl::ResourceExhaustedError(absl::StrCat("the plan's branch ", r_->num_branches,
                                                     " has ", want, " ", what, " but ", have,
                                                     " were reserved by MakePlan"));
  }

  sluice_attention_plan* r_;
  PlanBuilder* borrowed_ = nullptr;
  // Only the record of a stranger is known not to change behind what was read.
  bool adopted_ = false;
  bool read_ = false;
  absl::Span<const int32_t> q_positions_;
  std::optional<View> view_;
};

// The first Bytes of two records, whole words of them: in line, where a call of memcmp costs as
// much as all else that is checked of a small plan.
template <size_t Bytes>
bool SameWords(const void* a, const void* b) {
  constexpr size_t kWord = sizeof(uint64_t);
  static_assert(Bytes % kWord == 0);
  uint64_t differ = 0;
  for (size_t at = 0; at < Bytes; at += kWord) {
    uint64_t x = 0;
    uint64_t y = 0;
    std::memcpy(&x, static_cast<const char*>(a) + at, kWord);
    std::memcpy(&y, static_cast<const char*>(b) + at, kWord);
    differ |= x ^ y;
  }
  return differ == 0;
}

inline absl::StatusOr<BranchWriter> PlanBuilder::AddBranch(const BranchSpec& spec) {
  if (r_->num_branches >= r_->max_branches)
    return TooFew("branches", r_->num_branches + 1, r_->max_branches);
  sluice_plan_branch& b = r_->branches[r_->num_branches];
  const int64_t lists = NumLists(spec.scope, r_->heads, r_->kv_heads);
  const int64_t tiles = spec.num_tiles >= 0 ? spec.num_tiles : TilesOf(r_->q_count, spec.tile);
  const int64_t rows = lists * tiles;
  if (spec.encoding == Encoding::kPattern) {
    if (b.layout.terms == 0 || lists > b.layout.rows)
      return TooFew("lists of terms", lists, b.layout.terms == 0 ? 0 : b.layout.rows);
    std::memset(b.term_begin, 0, static_cast<size_t>(lists + 1) * sizeof(int32_t));
  } else if (rows > b.layout.rows) {
    return TooFew("rows", rows, b.layout.rows);
  }
  if (spec.num_tiles >= 0 && b.layout.order_slots == 0) return TooFew("order slots", 1, 0);
  if ((spec.bias && b.layout.bias == 0) || (spec.mask && b.layout.mask == 0))
    return TooFew("biases or masks", 1, 0);
  b.block = spec.block;
  b.tile = spec.tile;
  b.num_tiles = tiles;
  b.window = spec.window;
  b.init_from = spec.init_from;
  b.stop_tau = spec.stop_tau;
  b.scope = static_cast<uint8_t>(spec.scope);
  b.encoding = static_cast<uint8_t>(spec.encoding);
  b.token_mask = static_cast<uint8_t>(spec.token_mask);
  b.order = static_cast<uint8_t>(spec.order);
  b.stop = static_cast<uint8_t>(spec.stop);
  b.has_bias = spec.bias;
  b.has_mask = spec.mask;
  b.has_order = spec.num_tiles >= 0;
  if (spec.encoding != Encoding::kPattern) {
    const bool by_token =
        spec.encoding == Encoding::kTokens || spec.encoding == Encoding::kRankedPrefix;
    const int64_t slots = by_token ? b.layout.token_slots : b.layout.entry_slots;
    for (int64_t row = 0; row < rows; ++row) {
      b.row_begin[row] = row * slots;
      b.row_count[row] = 0;
    }
  }
  ++r_->num_branches;
  return BranchWriter(&b, r_, q_positions_);
}

inline absl::StatusOr<uint8_t> PlanBuilder::AddTable(const SummaryTable& t) {
  if (r_->num_tables >= r_->max_tables) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a plan holds at most ", r_->max_tables, " summary tables"));
  }
  read_ = false;
  sluice_summary_table& to = r_->tables[r_->num_tables++];
  std::memcpy(static_cast<void*>(&to.k), &t.k, sizeof to.k);
  std::memcpy(static_cast<void*>(&to.v), &t.v, sizeof to.v);
  to.log_count = t.log_count.data();
  to.begin = t.begin.empty() ? nullptr : t.begin.data();
  to.count = t.count.empty() ? nullptr : t.count.data();
  to.per_head = t.per_head;
  return static_cast<uint8_t>(r_->num_tables);
}

inline absl::Status PlanBuilder::CheckBranch(int i) const {
  const auto bad = [i](const auto&... why) { return Foul("the plan's branch ", i, " ", why...); };
  const sluice_plan_branch& b = r_->branches[i];
  const auto& layout = b.layout;
  if (!SameWords<offsetof(sluice_plan_branch, block)>(&b, &given_branches_[i]))
    return bad("has storage that the host did not give");
  if (b.scope > 2 || b.encoding > 4 || b.token_mask > 4 || b.order > 1 || b.stop > 2)
    return bad("has an unknown scope, encoding, mask, order or stop rule");
  if (b.num_tiles < 0 || b.num_tiles > kMostPlanQueries || b.init_from < -1)
    return bad("has ", b.num_tiles, " tiles, init_from ", b.init_from);
  const int64_t lists = NumLists(static_cast<ListScope>(b.scope), r_->heads, r_->kv_heads);
  static_assert(kMostPlanHeads < std::numeric_limits<int64_t>::max() / kMostPlanQueries / 4);
  const int64_t rows = lists * b.num_tiles;
  const auto encoding = static_cast<Encoding>(b.encoding);
  if ((b.has_bias && !layout.bias) || (b.has_mask && !layout.mask) ||
      (b.has_order &&
       (layout.order_slots == 0 || rows > layout.rows || rows + lists > TileBorders(layout.rows))))
    return bad("uses biases, masks or an order that it did not ask for");
  if (encoding == Encoding::kPattern) {
    if (layout.terms == 0 || lists > layout.rows)
      return bad("is a pattern that it did not ask for");
    for (int64_t l = 0; l < lists; ++l) {
      if (b.term_begin[l] < 0 || b.term_begin[l] > b.term_begin[l + 1] ||
          b.term_begin[l + 1] > layout.terms)
        return bad("has ", b.term_begin[l + 1], " terms of ", layout.terms);
    }
    return absl::OkStatus();
  }
  if (rows > layout.rows) return bad("has ", rows, " rows of at most ", layout.rows);
  return absl::OkStatus();
}

inline absl::Status PlanBuilder::Adopt(absl::Span<const int32_t> q_positions) {
  const auto bad = [](const auto&... why) { return Foul("the plan ", why...); };
  borrowed_ = nullptr;
  adopted_ = true;
  read_ = false;
  q_positions_ = q_positions;
  const sluice_attention_plan& r = *r_;
  if (given_ != nullptr && !SameWords<offsetof(sluice_attention_plan, q_begin)>(&r, given_))
    return bad("has storage that the host did not give");
  if (r.num_branches <= 0 || r.num_branches > r.max_branches || r.num_tables < 0 ||
      r.num_tables > r.max_tables)
    return bad("has ", r.num_branches, " branches of ", r.max_branches, " and ", r.num_tables,
               " tables of ", r.max_tables);
  if (r.merge > 2 || r.perm_scope > 2 || r.q_count < 0 || r.q_count > kMostPlanQueries ||
      r.heads <= 0 || r.heads > kMostPlanHeads || r.kv_heads <= 0 || r.kv_heads > r.heads ||
      r.kv_len < 0 || r.kv_len >= kMostPlanKeys)
    return bad("has merge ", int{r.merge}, ", ", r.q_count, " queries, ", r.kv_len, " keys, heads ",
               r.heads, "/", r.kv_heads);
  for (int i = 0; i < r.num_tables; ++i) {
    if (r.tables[i].k.rows < 0 || r.tables[i].k.rows > kMostPlanKeys)
      return bad("has a summary table of ", r.tables[i].k.rows, " rows");
  }
  const int64_t lists = NumLists(static_cast<ListScope>(r.perm_scope), r.heads, r.kv_heads);
  const int64_t weights = r.num_branches * r.q_count * r.heads;
  if ((r.has_perm && (r.perm_slots / lists < r.kv_len)) ||
      (r.has_key_bias && r.bias_slots / r.kv_heads < r.kv_len) ||
      (static_cast<Merge>(r.merge) == Merge::kWeightedSum && r.weight_slots < weights))
    return bad("uses a permutation, a key bias or weights that it did not ask for");
  for (int i = 0; i < r.num_branches && given_branches_ != nullptr; ++i) {
    if (absl::Status s = CheckBranch(i); !s.ok()) return s;
  }
  return absl::OkStatus();
}

inline absl::Status PlanBuilder::Extend(int64_t to) {
  read_ = false;
  const int64_t from = r_->kv_len;
  if (r_->q_count != 1 || to < from || r_->num_branches != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("only a plan of one query and one branch grows by keys; this one has ",
                     r_->q_count, " queries and ", r_->num_branches, " branches"));
  }
  sluice_plan_branch& b = r_->branches[0];
  const auto encoding = static_cast<Encoding>(b.encoding);
  const int64_t lists = NumLists(static_cast<ListScope>(b.scope), r_->heads, r_->kv_heads);
  const int64_t rows = encoding == Encoding::kPattern ? 0 : lists;  // patterns list nothing
  for (int64_t row = 0; row < rows && to > from; ++row) {
    uint32_t& n = b.row_count[row];
    if (encoding == Encoding::kTokens) {
      if (n + (to - from) > b.layout.token_slots)
        return TooFew("tokens", n + (to - from), b.layout.token_slots);
      for (int64_t key = from; key < to; ++key)
        b.tokens[b.row_begin[row] + n++] = static_cast<uint32_t>(key);
    } else if (encoding == Encoding::kRuns || encoding == Encoding::kBlocks) {
      const int64_t unit = encoding == Encoding::kBlocks ? b.block : 1;
      // The last entry may already reach into, or cover, what is new.
      sluice_plan_entry* e = b.entries + b.row_begin[row];
      const int64_t covered =
          n > 0 ? static_cast<int64_t>(e[n - 1].start) + e[n - 1].len : int64_t{0};
      const int64_t begin = std::max(from / unit, covered);
      const int64_t end = (to + unit - 1) / unit;
      if (begin >= end) continue;
      if (n + 1 > b.layout.entry_slots) return TooFew("entries", n + 1, b.layout.entry_slots);
      e[n++] = {static_cast<uint32_t>(begin),
                static_cast<uint32_t>(end - begin),
                static_cast<uint8_t>(EntryState::kExact),
                static_cast<uint8_t>(MaskClass::kCausal),
                0,
                1};
    } else {
      return absl::UnimplementedError("ranked prefixes do not grow by keys");
    }
  }
  r_->q_begin += to - from;
  r_->kv_len = to;
  return absl::OkStatus();
}

inline const AttentionPlan& PlanBuilder::Read() {
  if (!view_.has_value()) view_.emplace();
  const sluice_attention_plan& r = *r_;
  AttentionPlan& p = view_->plan;
  p.q_begin = r.q_begin;
  p.q_count = r.q_count;
  p.kv_len = r.kv_len;
  p.heads = r.heads;
  p.kv_heads = r.kv_heads;
  p.q_positions = q_positions_;
  p.merge = static_cast<Merge>(r.merge);
  for (int i = 0; i < r.num_branches; ++i) {
    const sluice_plan_branch& from = r.branches[i];
    AttentionBranch& b = view_->branches[i];
    b.encoding = static_cast<Encoding>(from.encoding);
    b.scope = static_cast<ListScope>(from.scope);
    b.block = from.block;
    b.tile = from.tile;
    b.window = from.window;
    b.num_tiles = from.num_tiles;
    b.num_lists = NumLists(b.scope, r.heads, r.kv_heads);
    const int64_t rows = b.num_lists * b.num_tiles;
    b.token_mask = static_cast<MaskClass>(from.token_mask);
    b.order = static_cast<EntryOrder>(from.order);
    b.stop = static_cast<StopRule>(from.stop);
    b.stop_tau = from.stop_tau;
    b.init_from = from.init_from;
    const bool pattern = b.encoding == Encoding::kPattern;
    const int64_t slots = b.ByToken() ? from.layout.token_slots : from.layout.entry_slots;
    const size_t pool = pattern ? 0 : from.layout.rows * slots;
    const auto* entries = reinterpret_cast<const PlanEntry*>(from.entries);
    b.rows.begin = {from.row_begin, static_cast<size_t>(pattern ? 0 : rows)};
    b.rows.count = {from.row_count, static_cast<size_t>(pattern ? 0 : rows)};
    b.entries = {entries, b.ByToken() ? 0 : pool};
    b.tokens = {from.tokens, b.ByToken() ? pool : 0};
    b.prefix = {from.prefix, static_cast<size_t>(from.layout.prefix_slots)};
    b.entry_bias = {from.entry_bias, from.has_bias ? pool : 0};
    b.row_mask = {from.row_mask, from.has_mask ? pool : 0};
    const bool ordered = from.has_order != 0;
    b.order_slots = ordered ? from.layout.order_slots / b.num_lists : 0;
    b.q_order = {from.q_order, static_cast<size_t>(b.order_slots * b.num_lists)};
    b.tile_begin = {from.tile_begin,
                    ordered ? static_cast<size_t>(b.num_lists * (b.num_tiles + 1)) : 0};
    const auto* terms = reinterpret_cast<const PatternTerm*>(from.terms);
    b.terms = {terms, pattern ? static_cast<size_t>(from.term_begin[b.num_lists]) : 0};
    b.term_begin = {from.term_begin, pattern ? static_cast<size_t>(b.num_lists + 1) : 0};
  }
  p.branches = absl::MakeConstSpan(view_->branches).first(static_cast<size_t>(r.num_branches));
  const size_t weights = static_cast<size_t>(r.num_branches * r.q_count * r.heads);
  p.branch_weight = {r.branch_weight, p.merge == Merge::kWeightedSum ? weights : 0};
  p.perm_scope = static_cast<ListScope>(r.perm_scope);
  const int64_t perm_lists = NumLists(p.perm_scope, r.heads, r.kv_heads);
  p.key_perm = {r.key_perm, r.has_perm ? static_cast<size_t>(perm_lists * r.kv_len) : 0};
  p.key_bias = {r.key_bias, r.has_key_bias ? static_cast<size_t>(r.kv_heads * r.kv_len) : 0};
  for (int i = 0; i < r.num_tables; ++i) {
    const sluice_summary_table& from = r.tables[i];
    SummaryTable& t = view_->tables[i];
    std::memcpy(static_cast<void*>(&t.k), &from.k, sizeof from.k);
    std::memcpy(static_cast<void*>(&t.v), &from.v, sizeof from.v);
    t.per_head = from.per_head != 0;
    const auto n = static_cast<size_t>(t.k.rows * (t.per_head ? r.kv_heads : 1));
    t.log_count = {from.log_count, n};
    t.begin = {from.begin, from.begin != nullptr ? n : 0};
    t.count = {from.count, from.count != nullptr ? n : 0};
  }
  p.tables = absl::MakeConstSpan(view_->tables).first(static_cast<size_t>(r.num_tables));
  read_ = adopted_;
  return p;
}

// Owns the storage of a plan and is the builder over it. Made once, filled by any number of Runs.
class PlanStorage : public PlanBuilder {
 public:
  // Fails with ResourceExhausted where sizes overflow or memory is not to be had.
  static absl::StatusOr<std::unique_ptr<PlanStorage>> Create(const PlanLayout& layout);
  PlanStorage(const PlanStorage&) = delete;  // the builder points into it
  PlanStorage& operator=(const PlanStorage&) = delete;

 private:
  struct Branch {
    std::vector<int64_t> row_begin, tile_begin;
    std::vector<uint32_t> row_count, tokens, prefix;
    std::vector<PlanEntry> entries;
    std::vector<float> bias;
    std::vector<uint64_t> mask;
    std::vector<int32_t> q_order, term_begin;
    std::vector<sluice_pattern_term> terms;
  };
  PlanStorage() : PlanBuilder(&record_) {}
  void Make(const PlanLayout& layout);

  sluice_attention_plan record_{};
  sluice_attention_plan given_record_{};
  std::vector<sluice_plan_branch> branch_records_;
  std::vector<sluice_plan_branch> given_branch_records_;
  std::vector<Branch> branches_;
  std::vector<float> weights_, bias_;
  std::vector<uint32_t> perm_;
};

inline absl::StatusOr<std::unique_ptr<PlanStorage>> PlanStorage::Create(const PlanLayout& layout) {
  constexpr int64_t kMost = int64_t{1} << 46;  // bytes; more is a mistake, not a plan
  int64_t bytes = 0;
  bool overflow = layout.num_branches < 0 || layout.num_branches > PlanLayout::kMaxBranches;
  const auto add = [&](int64_t n, int64_t each, int64_t size) {
    int64_t total = 0;
    overflow = overflow || n < 0 || each < 0 || __builtin_mul_overflow(n, each, &total) ||
               __builtin_mul_overflow(total, size, &total) ||
               __builtin_add_overflow(bytes, total, &bytes) || bytes > kMost;
  };
  for (int i = 0; i < layout.num_branches && !overflow; ++i) {
    const BranchLayout& b = layout.branches[i];
    add(b.rows, 1, 12);
    add(b.rows, b.entry_slots, int64_t{sizeof(PlanEntry)} + 12);
    add(b.rows, b.token_slots, 16);
    add(b.prefix_slots, 1, 4);
    add(b.order_slots, 1, 12);
    add(b.terms, 1, sizeof(sluice_pattern_term));
  }
  add(layout.weight_slots, 1, 4);
  add(layout.perm_slots, 1, 4);
  add(layout.bias_slots, 1, 4);
  if (overflow)
    return absl::ResourceExhaustedError("the plan's rows and slots need more than 2^46 bytes");
  std::unique_ptr<PlanStorage> s(new PlanStorage);
  try {
    s->Make(layout);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for a plan of ", bytes, " bytes"));
  }
  return s;
}

inline void PlanStorage::Make(const PlanLayout& layout) {
  branches_.resize(layout.num_branches);
  branch_records_.resize(layout.num_branches);
  for (int i = 0; i < layout.num_branches; ++i) {
    const BranchLayout& l = layout.branches[i];
    Branch& b = branches_[i];
    sluice_plan_branch& r = branch_records_[i];
    r = {};
    r.struct_size = sizeof r;
    std::memcpy(static_cast<void*>(&r.layout), &l, sizeof l);
    const int64_t slots = std::max(l.entry_slots, l.token_slots);
    b.row_begin.resize(l.rows);
    b.row_count.resize(l.rows);
    b.entries.resize(l.rows * l.entry_slots);
    b.tokens.resize(l.rows * l.token_slots);
    b.prefix.resize(l.prefix_slots);
    b.bias.resize(l.bias ? l.rows * slots : 0);
    b.mask.resize(l.mask ? l.rows * slots : 0);
    b.q_order.resize(l.order_slots);
    b.tile_begin.resize(l.order_slots > 0 ? TileBorders(l.rows) : 0);
    b.terms.resize(l.terms);
    b.term_begin.resize(l.terms > 0 ? std::max<int64_t>(l.rows, 1) + 1 : 0);
    r.row_begin = b.row_begin.data();
    r.row_count = b.row_count.data();
    r.entries = reinterpret_cast<sluice_plan_entry*>(b.entries.data());
    r.tokens = b.tokens.data();
    r.prefix = b.prefix.data();
    r.entry_bias = b.bias.data();
    r.row_mask = b.mask.data();
    r.tile_begin = b.tile_begin.data();
    r.q_order = b.q_order.data();
    r.terms = b.terms.data();
    r.term_begin = b.term_begin.data();
  }
  weights_.resize(layout.weight_slots);
  perm_.resize(layout.perm_slots);
  bias_.resize(layout.bias_slots);
  record_.struct_size = sizeof record_;
  record_.branches = branch_records_.data();
  record_.max_branches = layout.num_branches;
  record_.max_tables = SLUICE_MAX_TABLES;
  record_.branch_weight = weights_.data();
  record_.weight_slots = layout.weight_slots;
  record_.key_perm = perm_.data();
  record_.perm_slots = layout.perm_slots;
  record_.key_bias = bias_.data();
  record_.bias_slots = layout.bias_slots;
  given_record_ = record_;
  given_branch_records_ = branch_records_;
  given_ = &given_record_;
  given_branches_ = given_branch_records_.data();
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_PLAN_BUILDER_H_
