#ifndef SLUICE_API_PLAN_CHECK_H_
#define SLUICE_API_PLAN_CHECK_H_
// What must hold of an AttentionPlan, each check with all of the one before it: what the executor
// dereferences lies in range (CheckPlanBounds, before every run), lists say what they claim
// (CheckPlanLists, of plans that a stranger wrote), nothing is covered twice
// (ValidateAttentionPlan, of tests and debug builds).
#include <limits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/attention_plan.h"
#include "sluice/api/check.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace plan_check {
// Out of line: a plan is checked on the way of every call, and almost never refused.
template <class... Parts>
[[gnu::cold, gnu::noinline]] absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("attention plan: ", parts...));
}

[[gnu::always_inline]] inline absl::Status Header(const AttentionPlan& p) {
  if (p.q_count < 0 || p.kv_len < 0 || p.q_begin < 0) return Bad("negative size");
  if (p.kv_len > std::numeric_limits<uint32_t>::max())
    return Bad("kv_len ", p.kv_len, " does not fit 32 bits");
  if (p.q_count > kMostPlanQueries || p.q_begin > kMostPlanKeys || p.heads > kMostPlanHeads)
    return Bad(p.q_count, " queries from ", p.q_begin, " on and ", p.heads, " heads; allowed ",
               kMostPlanQueries, ", ", kMostPlanKeys, " and ", kMostPlanHeads);
  if (p.heads <= 0 || p.kv_heads <= 0 || p.heads % p.kv_heads != 0) {
    return Bad(p.heads, " query heads and ", p.kv_heads,
               " KV heads: the first must be a multiple of the second");
  }
  if (p.branches.empty()) return Bad("no branches");
  if (!p.q_positions.empty()) {
    if (std::ssize(p.q_positions) != p.q_count) return Bad("q_positions must be [q_count]");
    for (int64_t i = 0; i < p.q_count; ++i) {
      const int64_t least = i == 0 ? 0 : p.q_positions[i - 1] + 1;
      if (p.q_positions[i] < least || p.q_positions[i] >= p.kv_len)
        return Bad("q_positions must ascend strictly within the keys");
    }
  }
  const int64_t perm_lists = NumLists(p.perm_scope, p.heads, p.kv_heads);
  if (!p.key_perm.empty() && std::ssize(p.key_perm) != perm_lists * p.kv_len)
    return Bad("key_perm has ", p.key_perm.size(), " entries, wanted ", perm_lists * p.kv_len);
  for (uint32_t key : p.key_perm) {
    if (key >= p.kv_len) return Bad("key_perm names key ", key, " of ", p.kv_len);
  }
  if (!p.key_bias.empty() && std::ssize(p.key_bias) != p.kv_len * p.kv_heads)
    return Bad("key_bias must be [kv_heads, kv_len]");
  const int64_t weights = std::ssize(p.branches) * p.q_count * p.heads;
  if (p.merge == Merge::kWeightedSum && std::ssize(p.branch_weight) != weights)
    return Bad("branch_weight must be [branches, q_count, heads]");
  if (p.merge == Merge::kMean && p.branches.size() != 1)
    return Bad("a mean over memberships takes one branch, and has ", p.branches.size());
  // Their states are kept by slot, and without an order there are none.
  if (p.merge == Merge::kMean && p.branches[0].q_order.empty())
    return Bad("a mean over memberships needs tiles in an order of their own");
  for (size_t i = 0; i < p.tables.size(); ++i) {
    const SummaryTable& t = p.tables[i];
    if (t.rows() < 0 || t.rows() > kMostPlanKeys || t.k.dtype > DType::kI8 ||
        t.v.dtype > DType::kI8 || t.k.dtype < DType::kF32 || t.v.dtype < DType::kF32)
      return Bad("summary table ", i + 1, " has ", t.rows(), " rows of types ",
                 static_cast<int>(t.k.dtype), " and ", static_cast<int>(t.v.dtype));
    const int64_t n = t.rows() * (t.per_head ? p.kv_heads : 1);
    if (t.v.rows != t.rows() || t.k.heads != p.kv_heads || t.v.heads != p.kv_heads ||
        std::ssize(t.log_count) != n || t.begin.size() != t.count.size() ||
        (!t.begin.empty() && std::ssize(t.begin) != n) ||
        (t.rows() > 0 &&
         (t.k.data == nullptr || t.v.data == nullptr || t.log_count.data() == nullptr)))
      return Bad("summary table ", i + 1, " has ", t.rows(), " rows of keys, ", t.v.rows,
                 " of values, ", t.log_count.size(), " counts and ", t.k.heads, " heads");
  }
  return absl::OkStatus();
}

// One term of a pattern. Distances of two terms, and their products, fit 64 bits.
inline absl::Status Term(const AttentionPlan& p, size_t bi, const PatternTerm& t) {
  constexpr int64_t kMostDistance = int64_t{1} << 31;
  const auto bad = [bi](auto&&... why) { return Bad("branch ", bi, ": ", why...); };
  if (t.kind > PatternKind::kBox || t.a < 0 || t.a > kMostDistance || t.b < 0 ||
      t.b > kMostDistance || t.dims > 3 || !std::isfinite(t.slope) ||
      std::fabs(t.slope) * static_cast<double>(p.kv_len) > static_cast<double>(kMostPlanKeys))
    return bad("a pattern term of kind ", static_cast<int>(t.kind), " with a ", t.a, ", b ", t.b,
               ", slope ", t.slope);
  const bool by_stride = t.kind == PatternKind::kStrideAbsolute ||
                         t.kind == PatternKind::kStrideRelative || t.kind == PatternKind::kDilated;
  if (by_stride && t.a == 0) return bad("a pattern of stride 0");
  if (t.kind == PatternKind::kDilated && t.b == 0) return bad("a pattern of dilation 0");
  if (t.kind != PatternKind::kBox) return absl::OkStatus();

  int64_t points = 1;
  for (int x = 0; x < t.dims; ++x) {
    if (t.extent[x] <= 0 || t.stride[x] <= 0 || t.dilation[x] <= 0 || t.window[x] <= 0 ||
        t.window[x] > t.extent[x] / t.dilation[x] || t.stride[x] > t.window[x])
      return bad("dimension ", x, " of a box: extent ", t.extent[x], ", window ", t.window[x],
                 ", stride ", t.stride[x], ", dilation ", t.dilation[x]);
    if (points > kMostPlanKeys / t.extent[x])
      return bad("a box of more than ", kMostPlanKeys, " points");
    points *= t.extent[x];
  }
  const int64_t units = (p.kv_len + p.branches[bi].block - 1) / p.branches[bi].block;
  if (t.dims == 0 || points < units) return bad("a box of ", points, " points for ", units);
  return absl::OkStatus();
}

// Shapes of a branch and its query order.
[[gnu::always_inline]] inline absl::Status Shape(const AttentionPlan& p, size_t bi) {
  const AttentionBranch& b = p.branches[bi];
  const auto bad = [bi](auto&&... why) { return Bad("branch ", bi, ": ", why...); };
  if (b.block <= 0 || b.block > kMostPlanKeys || b.tile <= 0 || b.tile > kMostPlanQueries)
    return bad("block ", b.block, " and tile ", b.tile, ", allowed 1 to ", kMostPlanKeys,
               " and 1 to ", kMostPlanQueries);
  if (b.window < 0) return bad("window ", b.window, " is negative");
  if (b.num_lists != NumLists(b.scope, p.heads, p.kv_heads) || b.num_tiles < 0)
    return bad(b.num_lists, " lists of ", b.num_tiles, " tiles");
  if (b.init_from >= static_cast<int>(bi)) return bad("init_from must name an earlier branch");
  if (b.stop != StopRule::kNone && b.order != EntryOrder::kPriority)
    return bad("a stop rule needs priority order");
  if (b.stop == StopRule::kScore && b.entry_bias.empty())
    return bad("stopping by score needs scores");
  if (b.encoding == Encoding::kRankedPrefix && b.scope != ListScope::kKvHead)
    return bad("a ranked prefix needs KvHead scope");
  if (b.encoding == Encoding::kRankedPrefix && std::ssize(b.prefix) < p.heads * b.num_tiles)
    return bad("prefix must be [heads, tiles]");
  if (!b.row_mask.empty() && b.tile > 64) return bad("row_mask needs a tile of at most 64");
  if (b.q_order.empty()) {
    if (b.num_tiles != TilesOf(p.q_count, b.tile))
      return bad(b.num_tiles, " tiles of ", b.tile, " for ", p.q_count, " queries");
  } else {
    if (std::ssize(b.q_order) != b.num_lists * b.order_slots ||
        std::ssize(b.tile_begin) != b.num_lists * (b.num_tiles + 1))
      return bad("q_order must be [lists, slots] and tile_begin [lists, tiles + 1]");
    for (int64_t l = 0; l < b.num_lists; ++l) {
      for (int64_t t = 0; t < b.num_tiles; ++t) {
        const int64_t from = b.TileBegin(l, t);
        const int64_t to = b.TileEnd(l, t, p.q_count);
        if (from < 0 || to < from || to > b.order_slots || to - from > b.tile)
          return bad("tile ", t, " of list ", l, " holds slots [", from, ", ", to, ") of ",
                     b.order_slots, ", at most ", b.tile);
        for (int64_t s = from; s < to; ++s) {
          if (b.Query(l, s) < 0 || b.Query(l, s) >= p.q_count)
            return bad("slot ", s, " of list ", l, " holds query ", b.Query(l, s), " of ",
                       p.q_count);
        }
      }
    }
  }
  if (b.encoding == Encoding::kPattern) {
    if (std::ssize(b.term_begin) != b.num_lists + 1) return bad("term_begin must be [lists + 1]");
    // Distances are between keys where they stand; a permuted list has others.
    if (!p.key_perm.empty()) return bad("a pattern over permuted keys");
    for (const PatternTerm& t : b.terms) SLUICE_RETURN_IF_ERROR(Term(p, bi, t));
    return absl::OkStatus();
  }
  const int64_t rows = b.num_lists * b.num_tiles;
  if (std::ssize(b.rows.begin) < rows || std::ssize(b.rows.count) < rows)
    return bad(b.rows.begin.size(), " rows, wanted ", rows);
  const size_t pool = b.ByToken() ? b.tokens.size() : b.entries.size();
  if (!b.row_mask.empty() && b.row_mask.size() != pool)
    return bad("row_mask needs a word an entry");
  if (!b.entry_bias.empty() && b.entry_bias.size() != pool)
    return bad("entry_bias needs a value an entry");
  return absl::OkStatus();
}

// A row lies within what its branch lists.
inline absl::Status RowInPool(const AttentionBranch& b, size_t bi, int64_t r) {
  const auto pool = static_cast<int64_t>(b.ByToken() ? b.tokens.size() : b.entries.size());
  const int64_t begin = b.rows.begin[r];
  const int64_t count = b.rows.count[r];
  if (begin < 0 || count > pool - begin)
    return Bad("branch ", bi, " row ", r, " has ", count, " entries at ", begin, " of ", pool);
  return absl::OkStatus();
}

// Ids of a token or ranked row: the largest, so that the loop stays a reduction.
inline absl::Status TokensInRange(const AttentionPlan& p, size_t bi, int64_t r) {
  const AttentionBranch& b = p.branches[bi];
  const bool ranked = b.encoding == Encoding::kRankedPrefix;
  const int64_t ids = ranked ? (p.kv_len + b.block - 1) / b.block : p.kv_len;
  const uint32_t* list = b.tokens.data() + b.rows.begin[r];
  const uint32_t n = b.rows.count[r];
  uint32_t most = 0;
  for (uint32_t i = 0; i < n; ++i) most = std::max(most, list[i]);
  if (n > 0 && most >= ids)
    return Bad("branch ", bi, " row ", r, ranked ? " ranks block " : " names key ", most, " of ",
               ids);
  if (!ranked) return absl::OkStatus();

  const int64_t g = p.heads / p.kv_heads;
  const int64_t kv = r / b.num_tiles;
  for (int64_t h = kv * g; h < (kv + 1) * g; ++h) {
    if (b.prefix[h * b.num_tiles + r % b.num_tiles] > n)
      return Bad("branch ", bi, ": prefix of head ", h, " is longer than its ranking");
  }
  return absl::OkStatus();
}

// How far a plan is believed.
enum class Trust : uint8_t {
  kRouter,    // its own code wrote it: nothing is read out of range
  kStranger,  // nor does a list say what it does not hold
};

// A row of entries. `units`: keys, or blocks of them, that they may name; `first`: the least
// position of the row's queries, which kFull entries must not pass.
template <Trust kTrust>
absl::Status EntryRow(const AttentionPlan& p, size_t bi, int64_t r, int64_t units, int64_t first) {
  const AttentionBranch& b = p.branches[bi];
  const int64_t unit = b.encoding == Encoding::kBlocks ? b.block : 1;
  const int64_t begin = b.rows.begin[r];
  const PlanEntry* row = b.entries.data() + begin;
  const bool ascending = b.order == EntryOrder::kAscending;
  int64_t after = 0;                                // one past what came before, in units
  int64_t table_after[SLUICE_MAX_TABLES + 1] = {};  // the same of each table, in rows
  for (uint32_t i = 0; i < b.rows.count[r]; ++i) {
    const PlanEntry& e = row[i];
    const int64_t end = static_cast<int64_t>(e.start) + e.len;
    if (e.state > EntryState::kSummary || e.mask > MaskClass::kNone)
      return Bad("branch ", bi, " row ", r, " has an unknown state or mask");
    if (e.state == EntryState::kSummary) {
      if (e.level == 0 || e.level > p.tables.size())
        return Bad("branch ", bi, " row ", r, " names summary table ", int{e.level}, " of ",
                   p.tables.size());
      if (end > p.tables[e.level - 1].rows())
        return Bad("branch ", bi, " row ", r, " reads table row ", end - 1, " of ",
                   p.tables[e.level - 1].rows());
    } else if (end > units) {
      return Bad("branch ", bi, " row ", r, " reaches ",
                 b.encoding == Encoding::kBlocks ? "block " : "key ", end - 1, " of ", units);
    }
    if (e.mask == MaskClass::kPermCausal && p.key_perm.empty())
      return Bad("branch ", bi, " row ", r, " is PermCausal without key_perm");
    if (e.mask == MaskClass::kLowerBound && b.window <= 0)
      return Bad("branch ", bi, " row ", r, " is LowerBound with window ", b.window);
    if constexpr (kTrust == Trust::kStranger) {
      if (!b.entry_bias.empty() && std::isnan(b.entry_bias[begin + i]))
        return Bad("branch ", bi, " row ", r, " has a bias that is no number");
      if (e.len == 0) return Bad("branch ", bi, " row ", r, " has an empty entry");
      int64_t& past = e.state == EntryState::kSummary ? table_after[e.level] : after;
      if (ascending && e.start < past)
        return Bad("branch ", bi, " row ", r, " is not sorted or covers ",
                   e.state == EntryState::kSummary ? "table row " : "key ",
                   e.state == EntryState::kSummary ? e.start : e.start * unit, " twice");
      past = end;
      if (e.state == EntryState::kExact && e.mask == MaskClass::kFull && p.key_perm.empty()) {
        int64_t lo = 0;
        int64_t hi = 0;
        EntryKeys(b, e, p.kv_len, &lo, &hi);
        if (hi - 1 > first)
          return Bad("branch ", bi, " row ", r, " shows key ", hi - 1, " to query ", first);
      }
    }
  }
  return absl::OkStatus();
}

// The same of a row of token ids, or of blocks in the order of their ranks.
inline absl::Status TokenOrder(const AttentionPlan& p, size_t bi, int64_t r, int64_t first) {
  const AttentionBranch& b = p.branches[bi];
  const bool ascending = b.order == EntryOrder::kAscending && b.encoding != Encoding::kRankedPrefix;
  const int64_t begin = b.rows.begin[r];
  int64_t after = 0;
  for (int64_t i = begin; i < begin + b.rows.count[r]; ++i) {
    const int64_t key = b.tokens[i];
    if (!b.entry_bias.empty() && std::isnan(b.entry_bias[i]))
      return Bad("branch ", bi, " row ", r, " has a bias that is no number");
    if (ascending && key < after)
      return Bad("branch ", bi, " row ", r, " is not ascending and unique");
    if (b.token_mask == MaskClass::kFull && p.key_perm.empty() && key > first)
      return Bad("branch ", bi, " row ", r, " shows key ", key, " to query ", first);
    after = key + 1;
  }
  return absl::OkStatus();
}

// The least and the greatest position of a tile's queries. kFull entries must not pass the least.
inline std::pair<int64_t, int64_t> TileSpan(const AttentionPlan& p, const AttentionBranch& b,
                                            int64_t list, int64_t t) {
  if (b.q_order.empty())
    return {p.position(b.TileBegin(list, t)), p.position(b.TileEnd(list, t, p.q_count) - 1)};
  int64_t first = std::numeric_limits<int64_t>::max();
  int64_t last = -1;
  for (int64_t s = b.TileBegin(list, t); s < b.TileEnd(list, t, p.q_count); ++s) {
    first = std::min(first, p.position(b.Query(list, s)));
    last = std::max(last, p.position(b.Query(list, s)));
  }
  return {first, last};
}

// Rows of a branch, one after another while they are at hand.
template <Trust kTrust>
[[gnu::always_inline]] inline absl::Status Rows(const AttentionPlan& p, size_t bi) {
  const AttentionBranch& b = p.branches[bi];
  const int64_t unit = b.encoding == Encoding::kBlocks ? b.block : 1;
  const int64_t units = unit == 1 ? p.kv_len : (p.kv_len + unit - 1) / unit;
  int64_t r = 0;
  for (int64_t list = 0; list < b.num_lists; ++list) {
    for (int64_t t = 0; t < b.num_tiles; ++t, ++r) {
      SLUICE_RETURN_IF_ERROR(RowInPool(b, bi, r));
      const int64_t first = kTrust == Trust::kStranger ? TileSpan(p, b, list, t).first : 0;
      if (!b.ByToken()) {
        SLUICE_RETURN_IF_ERROR(EntryRow<kTrust>(p, bi, r, units, first));
        continue;
      }
      SLUICE_RETURN_IF_ERROR(TokensInRange(p, bi, r));
      if constexpr (kTrust == Trust::kStranger) {
        SLUICE_RETURN_IF_ERROR(TokenOrder(p, bi, r, first));
      }
    }
  }
  return absl::OkStatus();
}

template <Trust kTrust>
absl::Status Plan(const AttentionPlan& p) {
  SLUICE_RETURN_IF_ERROR(Header(p));
  if constexpr (kTrust == Trust::kStranger) {
    for (float w : p.branch_weight) {
      if (!std::isfinite(w)) return Bad("a branch weight is not finite");
    }
    for (float w : p.key_bias) {
      if (std::isnan(w)) return Bad("a key bias is no number");
    }
  }
  for (size_t bi = 0; bi < p.branches.size(); ++bi) {
    SLUICE_RETURN_IF_ERROR(Shape(p, bi));
    if (p.branches[bi].encoding == Encoding::kPattern) continue;
    SLUICE_RETURN_IF_ERROR(Rows<kTrust>(p, bi));
  }
  return absl::OkStatus();
}
}  // namespace plan_check

// Everything that the executor dereferences lies in range. Allocation-free; O(listed).
inline absl::Status CheckPlanBounds(const AttentionPlan& p) {
  return plan_check::Plan<plan_check::Trust::kRouter>(p);
}

// And: lists ascend where they say so, full entries show nothing of the future, biases and weights
// are numbers. Allocation-free; O(listed).
inline absl::Status CheckPlanLists(const AttentionPlan& p) {
  return plan_check::Plan<plan_check::Trust::kStranger>(p);
}

namespace plan_check {
using Spans = std::vector<std::pair<int64_t, int64_t>>;

// The keys a row covers, sorted; of summaries, what their rows stand for.
inline absl::Status RowSpans(const AttentionPlan& p, size_t bi, int64_t r, int64_t first,
                             Spans& spans) {
  const AttentionBranch& b = p.branches[bi];
  const int64_t list = r / b.num_tiles;
  const int64_t kv = b.scope == ListScope::kQueryHead ? list / (p.heads / p.kv_heads)
                     : b.scope == ListScope::kKvHead  ? list
                                                      : 0;
  for (int64_t i = b.rows.begin[r]; i < b.rows.begin[r] + b.rows.count[r]; ++i) {
    if (b.ByToken()) {
      const int64_t unit = b.encoding == Encoding::kRankedPrefix ? b.block : 1;
      spans.emplace_back(b.tokens[i] * unit, (b.tokens[i] + int64_t{1}) * unit);
      continue;
    }
    const PlanEntry& e = b.entries[i];
    int64_t lo = 0;
    int64_t hi = 0;
    EntryKeys(b, e, p.kv_len, &lo, &hi);
    if (e.state == EntryState::kExact) {
      spans.emplace_back(lo, hi);
      continue;
    }
    const SummaryTable& t = p.tables[e.level - 1];
    for (int64_t s = lo; s < hi && !t.begin.empty(); ++s) {
      const int64_t begin = t.begin[t.at(kv, s)];
      const int64_t end = begin + t.count[t.at(kv, s)];
      if (e.mask != MaskClass::kNone && end - 1 > first)
        return Bad("branch ", bi, " row ", r, " summarises key ", end - 1, " which query ", first,
                   " may not see");
      spans.emplace_back(begin, end);
    }
  }
  std::sort(spans.begin(), spans.end());
  return absl::OkStatus();
}
}  // namespace plan_check

// All of the above, and: no key is covered twice in a row, permutations are permutations, a query
// stands in one tile of a list unless means are taken. Allocates; O(listed log listed).
inline absl::Status ValidateAttentionPlan(const AttentionPlan& p) {
  SLUICE_RETURN_IF_ERROR(CheckPlanLists(p));
  for (int64_t at = 0; at < std::ssize(p.key_perm); at += p.kv_len) {
    std::vector<bool> seen(p.kv_len);
    for (int64_t i = 0; i < p.kv_len; ++i) {
      if (seen[p.key_perm[at + i]]) return plan_check::Bad("key_perm is not a permutation");
      seen[p.key_perm[at + i]] = true;
    }
  }
  for (size_t bi = 0; bi < p.branches.size(); ++bi) {
    const AttentionBranch& b = p.branches[bi];
    for (int64_t l = 0; l < b.num_lists && !b.q_order.empty() && p.merge != Merge::kMean; ++l) {
      std::vector<bool> seen(p.q_count);
      for (int64_t t = 0; t < b.num_tiles; ++t) {
        for (int64_t s = b.TileBegin(l, t); s < b.TileEnd(l, t, p.q_count); ++s) {
          if (seen[b.Query(l, s)])
            return plan_check::Bad("branch ", bi, " holds query ", b.Query(l, s), " twice");
          seen[b.Query(l, s)] = true;
        }
      }
    }
    if (b.encoding == Encoding::kPattern) continue;
    for (int64_t r = 0; r < b.num_lists * b.num_tiles; ++r) {
      plan_check::Spans spans;
      const auto [first, last] = plan_check::TileSpan(p, b, r / b.num_tiles, r % b.num_tiles);
      SLUICE_RETURN_IF_ERROR(plan_check::RowSpans(p, bi, r, first, spans));
      for (size_t i = 1; i < spans.size(); ++i) {
        if (spans[i].first < spans[i - 1].second)
          return plan_check::Bad("branch ", bi, " row ", r, " covers key ", spans[i].first,
                                 " twice");
      }
    }
  }
  return absl::OkStatus();
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_PLAN_CHECK_H_
