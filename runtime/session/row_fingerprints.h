#ifndef SLUICE_RUNTIME_SESSION_ROW_FINGERPRINTS_H_
#define SLUICE_RUNTIME_SESSION_ROW_FINGERPRINTS_H_
// A 64-bit fingerprint of every key row, over all heads and bytes: tells from which row on a cache
// is no longer the one that was summarised.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "sluice/api/tensor_view.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
class RowFingerprints {
 public:
  void Reserve(int64_t rows) { of_.reserve(rows); }
  // Takes in the rows up to `rows`.
  void Append(const KvView& k, int64_t rows) {
    for (int64_t r = std::ssize(of_); r < rows; ++r) of_.push_back(Of(k, r));
  }
  void Truncate(int64_t rows) {
    if (rows < std::ssize(of_)) of_.resize(std::max<int64_t>(0, rows));
  }
  // The first row below `rows` that differs, or has not been taken in; `rows` if there is none.
  int64_t FirstDifferent(const KvView& k, int64_t rows) const {
    const int64_t known = std::min(rows, static_cast<int64_t>(of_.size()));
    for (int64_t r = 0; r < known; ++r) {
      if (Of(k, r) != of_[r]) return r;
    }
    return known;
  }

 private:
  static uint64_t Of(const KvView& k, int64_t row) {
    uint64_t h = 0x9E3779B97F4A7C15u;
    const int64_t bytes = DTypeBytes(k.dtype, k.dim);
    for (int64_t head = 0; head < k.heads; ++head) {
      const std::byte* at = k.at(row, head);
      for (int64_t i = 0; i < bytes; i += 8) {
        uint64_t word = 0;
        std::memcpy(&word, at + i, static_cast<size_t>(std::min<int64_t>(8, bytes - i)));
        h = (h ^ word) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
      }
    }
    return h;
  }
  std::vector<uint64_t> of_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SESSION_ROW_FINGERPRINTS_H_
