#ifndef SLUICE_RUNTIME_DISPATCH_UNIT_MAJOR_H_
#define SLUICE_RUNTIME_DISPATCH_UNIT_MAJOR_H_
// An Assignment seen from its units: the exact transpose of its rows.
#include <algorithm>

#include "absl/types/span.h"
#include "sluice/api/assignment.h"

SLUICE_BEGIN_NAMESPACE
// Unit u has the items item[begin[u], begin[u + 1]), ascending. Storage belongs to the caller.
struct UnitMajor {
  absl::Span<int64_t> begin;  // units + 1
  absl::Span<int32_t> item;   // entries
  absl::Span<int64_t> slot;   // entries: where an entry of the rows stands in `item`
};

// Counting sort. `a` is valid. O(entries + units).
inline void Transpose(const Assignment& a, UnitMajor& t) {
  const int64_t entries = a.entries();
  std::fill_n(t.begin.begin(), a.units + 1, 0);
  for (int64_t e = 0; e < entries; ++e) ++t.begin[static_cast<size_t>(a.unit[e]) + 1];
  for (int64_t u = 0; u < a.units; ++u) t.begin[u + 1] += t.begin[u];

  // begin[u] runs through unit u's slots and ends where unit u + 1 begins; moved back afterwards.
  for (int64_t i = 0; i < a.items; ++i) {
    for (int64_t e = a.row_ptr[i]; e < a.row_ptr[i + 1]; ++e) {
      const int64_t at = t.begin[a.unit[e]]++;
      t.item[at] = static_cast<int32_t>(i);
      t.slot[e] = at;
    }
  }
  for (int64_t u = a.units; u > 0; --u) t.begin[u] = t.begin[u - 1];
  t.begin[0] = 0;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_DISPATCH_UNIT_MAJOR_H_
