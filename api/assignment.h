#ifndef SLUICE_API_ASSIGNMENT_H_
#define SLUICE_API_ASSIGNMENT_H_
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/abi/sluice_abi.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// Items x units in CSR form; storage belongs to the caller. An item is a token, layer, head, query
// or sequence; a unit is an expert, adapter, agent, or one of {run, skip, approximate}. Item i owns
// entries [row_ptr[i], row_ptr[i + 1]). Laid out as sluice_assignment, so that a plug-in fills it
// where it lies.
struct Assignment {
  size_t struct_size = sizeof(Assignment);
  int64_t items = 0, units = 0;
  absl::Span<int32_t> row_ptr;  // items + 1
  absl::Span<int32_t> unit;     // ascending and unique inside a row
  absl::Span<float> weight;     // same length as unit
  absl::Span<int32_t> dropped;  // items that asked for a unit and got none (capacity); ascending
  int64_t num_dropped = 0;
};
static_assert(sizeof(Assignment) == sizeof(sluice_assignment) &&
              offsetof(Assignment, row_ptr) == offsetof(sluice_assignment, row_ptr) &&
              offsetof(Assignment, unit) == offsetof(sluice_assignment, unit) &&
              offsetof(Assignment, weight) == offsetof(sluice_assignment, weight) &&
              offsetof(Assignment, dropped) == offsetof(sluice_assignment, dropped) &&
              offsetof(Assignment, num_dropped) == offsetof(sluice_assignment, num_dropped));

// Checks shape, order, range and finite weights. O(entries).
inline absl::Status ValidateAssignment(const Assignment& a) {
  if (a.items < 0 || a.units < 0) return absl::InvalidArgumentError("assignment: negative shape");
  if (a.row_ptr.size() != static_cast<size_t>(a.items) + 1) {
    return absl::InvalidArgumentError(absl::StrCat("assignment: row_ptr has ", a.row_ptr.size(),
                                                   " entries, wanted items + 1 = ", a.items + 1));
  }
  if (a.row_ptr[0] != 0) return absl::InvalidArgumentError("assignment: row_ptr[0] must be 0");
  for (int64_t i = 0; i < a.items; ++i) {
    const int32_t begin = a.row_ptr[i], end = a.row_ptr[i + 1];
    if (end < begin || static_cast<size_t>(end) > a.unit.size() ||
        static_cast<size_t>(end) > a.weight.size()) {
      return absl::InvalidArgumentError(absl::StrCat("assignment: row ", i, " has range [", begin,
                                                     ", ", end, ") of ", a.unit.size(),
                                                     " entries"));
    }
    for (int32_t e = begin; e < end; ++e) {
      if (a.unit[e] < 0 || a.unit[e] >= a.units) {
        return absl::OutOfRangeError(absl::StrCat("assignment: row ", i, " names unit ", a.unit[e],
                                                  ", allowed [0, ", a.units, ")"));
      }
      if (e > begin && a.unit[e] <= a.unit[e - 1]) {
        return absl::InvalidArgumentError(
            absl::StrCat("assignment: row ", i, " is not ascending and unique"));
      }
      if (!std::isfinite(a.weight[e])) {
        return absl::InvalidArgumentError(
            absl::StrCat("assignment: row ", i, " has a weight that is not finite"));
      }
    }
  }
  if (a.num_dropped < 0 || static_cast<size_t>(a.num_dropped) > a.dropped.size()) {
    return absl::InvalidArgumentError(absl::StrCat("assignment: num_dropped is ", a.num_dropped,
                                                   " but the list holds ", a.dropped.size()));
  }
  return absl::OkStatus();
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_ASSIGNMENT_H_
