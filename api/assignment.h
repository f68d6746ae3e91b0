#ifndef SLUICE_API_ASSIGNMENT_H_
#define SLUICE_API_ASSIGNMENT_H_
// What an assignment router writes and Dispatch runs: which units every item goes to.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// An item and a unit that it asked for and did not get: the unit was full.
struct DroppedPair {
  int32_t item = 0, unit = 0;
  friend bool operator==(const DroppedPair&, const DroppedPair&) = default;
};

// Items x units in CSR form; storage belongs to the caller. An item is a token, layer, head, query
// or sequence; a unit is an expert, adapter, agent, or one of {run, skip, approximate}. Item i owns
// entries [row_ptr[i], row_ptr[i + 1]).
//
// `weight` mixes, `score` ranks: a bias, noise or a forced set may change which units win without
// changing how much of each is mixed in.
struct Assignment {
  int64_t items = 0, units = 0;
  absl::Span<int64_t> row_ptr;      // items + 1, or more room
  absl::Span<int32_t> unit;         // ascending and unique inside a row
  absl::Span<float> weight;         // mixing weight of each entry, finite
  absl::Span<float> score;          // rank score of each entry; empty: the caller does not want it
  absl::Span<DroppedPair> dropped;  // room for what capacity drops; ascending by item, then unit
  int64_t num_dropped = 0;
  int64_t nan_scores = 0;  // scores that were NaN, and therefore never selected

  int64_t entries() const { return row_ptr[static_cast<size_t>(items)]; }
};

// How the results of an item's units become one row. x: the item's input, y_u: unit u's result,
// w_u: its weight. A unit of kind kSkip has no result and adds nothing to any sum.
enum class Combine : uint8_t {
  kWeightedSum,  // sum_u w_u y_u; an item without units gives 0
  kResidual,     // x + sum_u w_u y_u
  kReplace,      // y_u of the one unit, weight ignored; an item without units passes through
  kBlend,        // x + sum_u w_u (y_u - x): a soft step from x towards the units' mixture
};

// An Assignment and its storage, sized once.
class AssignmentBuffer {
 public:
  AssignmentBuffer() { Clear(); }
  AssignmentBuffer(AssignmentBuffer&&) = default;
  AssignmentBuffer& operator=(AssignmentBuffer&&) = default;

  // Room for `items` items with `entries` entries and `dropped` dropped pairs in all. The only
  // call that allocates.
  void Reserve(int64_t items, int64_t entries, int64_t dropped = 0) {
    row_ptr_.resize(static_cast<size_t>(items) + 1);
    unit_.resize(static_cast<size_t>(entries));
    weight_.resize(static_cast<size_t>(entries));
    score_.resize(static_cast<size_t>(entries));
    dropped_.resize(static_cast<size_t>(dropped));
    Clear();
  }

  // Forgets what was written, keeps the room.
  void Clear() {
    view_ = Assignment();
    view_.row_ptr = absl::MakeSpan(row_ptr_);
    view_.unit = absl::MakeSpan(unit_);
    view_.weight = absl::MakeSpan(weight_);
    view_.score = absl::MakeSpan(score_);
    view_.dropped = absl::MakeSpan(dropped_);
    row_ptr_[0] = 0;
  }

  Assignment& view() { return view_; }
  const Assignment& view() const { return view_; }

 private:
  std::vector<int64_t> row_ptr_ = {0};
  std::vector<int32_t> unit_;
  std::vector<float> weight_, score_;
  std::vector<DroppedPair> dropped_;
  Assignment view_;
};

namespace assignment_internal {
// Whether CheckRow would pass every row: all of its conditions, none of its words.
inline bool RowsHold(const Assignment& a) {
  const int64_t* row_ptr = a.row_ptr.data();
  const int32_t* unit = a.unit.data();
  const float* weight = a.weight.data();
  const float* score = a.score.empty() ? nullptr : a.score.data();
  const auto slots = static_cast<int64_t>(std::min(a.unit.size(), a.weight.size()));
  int64_t e = row_ptr[0];
  for (int64_t i = 0; i < a.items; ++i) {
    const int64_t end = row_ptr[i + 1];
    if (end < e || end > slots) return false;
    for (int64_t before = -1; e < end; ++e) {
      const int64_t u = unit[e];
      if (u <= before || u >= a.units || !std::isfinite(weight[e])) return false;
      if (score != nullptr && std::isnan(score[e])) return false;
      before = u;
    }
  }
  return true;
}

// The same with the reason.
inline absl::Status CheckRow(const Assignment& a, int64_t i) {
  const int64_t begin = a.row_ptr[static_cast<size_t>(i)];
  const int64_t end = a.row_ptr[static_cast<size_t>(i) + 1];
  if (end < begin || end > static_cast<int64_t>(a.unit.size()) ||
      end > static_cast<int64_t>(a.weight.size())) {
    return absl::InvalidArgumentError(absl::StrCat("assignment: row ", i, " has range [", begin,
                                                   ", ", end, ") of ", a.unit.size(), " entries"));
  }

  for (int64_t e = begin; e < end; ++e) {
    const int32_t unit = a.unit[static_cast<size_t>(e)];
    if (unit < 0 || unit >= a.units) {
      return absl::OutOfRangeError(absl::StrCat("assignment: row ", i, " names unit ", unit,
                                                ", allowed [0, ", a.units, ")"));
    }
    if (e > begin && unit <= a.unit[static_cast<size_t>(e) - 1]) {
      return absl::InvalidArgumentError(
          absl::StrCat("assignment: row ", i, " is not ascending and unique"));
    }
    if (!std::isfinite(a.weight[static_cast<size_t>(e)])) {
      return absl::InvalidArgumentError(
          absl::StrCat("assignment: row ", i, " has a weight that is not finite"));
    }
    if (!a.score.empty() && std::isnan(a.score[static_cast<size_t>(e)])) {
      return absl::InvalidArgumentError(
          absl::StrCat("assignment: row ", i, " selected a score that is not a number"));
    }
  }
  return absl::OkStatus();
}

inline absl::Status CheckDropped(const Assignment& a) {
  if (a.num_dropped < 0 || a.num_dropped > static_cast<int64_t>(a.dropped.size())) {
    return absl::InvalidArgumentError(absl::StrCat("assignment: num_dropped is ", a.num_dropped,
                                                   " but the list holds ", a.dropped.size()));
  }
  for (int64_t d = 0; d < a.num_dropped; ++d) {
    const DroppedPair& p = a.dropped[static_cast<size_t>(d)];
    if (p.item < 0 || p.item >= a.items || p.unit < 0 || p.unit >= a.units) {
      return absl::OutOfRangeError(absl::StrCat("assignment: dropped pair (", p.item, ", ", p.unit,
                                                ") of ", a.items, " items and ", a.units,
                                                " units"));
    }
    if (d == 0) continue;
    const DroppedPair& before = a.dropped[static_cast<size_t>(d) - 1];
    if (p.item < before.item || (p.item == before.item && p.unit <= before.unit)) {
      return absl::InvalidArgumentError(
          absl::StrCat("assignment: dropped pair ", d, " is not after the one before it"));
    }
  }
  return absl::OkStatus();
}
}  // namespace assignment_internal

// Checks shape, order, range, finite weights, scores that are numbers, and the dropped pairs.
// O(entries).
inline absl::Status ValidateAssignment(const Assignment& a) {
  if (a.items < 0 || a.units < 0) return absl::InvalidArgumentError("assignment: negative shape");
  if (static_cast<int64_t>(a.row_ptr.size()) < a.items + 1) {
    return absl::InvalidArgumentError(absl::StrCat("assignment: row_ptr has ", a.row_ptr.size(),
                                                   " entries, wanted items + 1 = ", a.items + 1));
  }
  if (a.row_ptr[0] != 0) return absl::InvalidArgumentError("assignment: row_ptr[0] must be 0");

  if (!a.score.empty() && a.score.size() < a.unit.size()) {
    return absl::InvalidArgumentError(absl::StrCat("assignment: room for ", a.score.size(),
                                                   " scores and ", a.unit.size(),
                                                   " units; give none or all"));
  }
  const bool hold = assignment_internal::RowsHold(a);
  for (int64_t i = 0; !hold && i < a.items; ++i) {
    if (absl::Status s = assignment_internal::CheckRow(a, i); !s.ok()) return s;
  }
  return assignment_internal::CheckDropped(a);
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_ASSIGNMENT_H_
