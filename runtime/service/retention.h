#ifndef SLUICE_RUNTIME_SERVICE_RETENTION_H_
#define SLUICE_RUNTIME_SERVICE_RETENTION_H_
// Which outcomes a store may forget.
#include <algorithm>
#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "sluice/runtime/store/record.h"

SLUICE_BEGIN_NAMESPACE
// The first outcome of each day.
class DayMarks {
 public:
  static int64_t DayOf(int64_t unix_ms) { return unix_ms / (24 * 3600 * int64_t{1000}); }
  void Note(int64_t unix_ms, uint64_t sequence) {
    const int64_t day = DayOf(unix_ms);
    if (first_.empty() || day > first_.rbegin()->first) first_.emplace(day, sequence);
  }
  // The first outcome of `day` or later; `otherwise` where none is known.
  uint64_t FirstSince(int64_t day, uint64_t otherwise) const {
    const auto at = first_.lower_bound(day);
    return at == first_.end() ? otherwise : at->second;
  }
  void ForgetBefore(int64_t day) { first_.erase(first_.begin(), first_.lower_bound(day)); }
  std::string Serialize() const {
    std::string out;
    for (const auto& [day, sequence] : first_) {
      record_internal::Put(out, day);
      record_internal::Put(out, sequence);
    }
    return out;
  }
  // Damage is forgotten: days that are not known are kept longer.
  void Parse(absl::string_view bytes) {
    record_internal::Reader r(bytes);
    first_.clear();
    while (!r.rest().empty() && !r.failed()) {
      const auto day = r.Get<int64_t>();
      const auto sequence = r.Get<uint64_t>();
      if (!r.failed()) first_.emplace(day, sequence);
    }
  }

 private:
  std::map<int64_t, uint64_t> first_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_RETENTION_H_
