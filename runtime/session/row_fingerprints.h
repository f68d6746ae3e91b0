#ifndef SLUICE_RUNTIME_SESSION_ROW_FINGERPRINTS_H_
#define SLUICE_RUNTIME_SESSION_ROW_FINGERPRINTS_H_
// A 64-bit fingerprint of every key row, over all heads and bytes: tells from which row on a cache
// is no longer the one that was summarised.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "sluice/api/executor.h"
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
  int64_t FirstDifferent(const KvView& k, int64_t rows, Executor& executor) const {
    const int64_t known = std::min(rows, static_cast<int64_t>(of_.size()));
    std::atomic<int64_t> first{known};
    executor.ParallelFor(known, kRows, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end && r < first.load(std::memory_order_relaxed); ++r) {
        if (Of(k, r) == of_[r]) continue;
        int64_t seen = first.load();
        while (r < seen && !first.compare_exchange_weak(seen, r)) {
        }
        return;
      }
    });
    return first;
  }

 private:
  // Rows that one thread looks at. Fewer are not worth a second one.
  static constexpr int64_t kRows = 1024;
  // Sums that do not wait for each other, a step of all keys being otherwise bound by them.
  static constexpr int kLanes = 8;
  static constexpr int64_t kWord = sizeof(uint64_t);
  // The rotation brings a word's high bits down, where the next product spreads them: without it
  // two changed signs would cancel out.
  static uint64_t Mix(uint64_t h, uint64_t word) {
    return std::rotl((h ^ word) * 0xD6E8FEB86659FD93u, 29);
  }
  static uint64_t Of(const KvView& k, int64_t row) {
    std::array<uint64_t, kLanes> lanes;
    for (int l = 0; l < kLanes; ++l) lanes[l] = 0x9E3779B97F4A7C15u + static_cast<uint64_t>(l);
    const int64_t bytes = DTypeBytes(k.dtype, k.dim);
    for (int64_t head = 0; head < k.heads; ++head) {
      const std::byte* at = k.at(row, head);
      int64_t i = 0;
      for (; i + kLanes * kWord <= bytes; i += kLanes * kWord) {
        std::array<uint64_t, kLanes> words;
        std::memcpy(words.data(), at + i, sizeof words);
        for (int l = 0; l < kLanes; ++l) lanes[l] = Mix(lanes[l], words[l]);
      }
      for (int l = 0; i < bytes; i += kWord, ++l) {
        uint64_t word = 0;
        std::memcpy(&word, at + i, static_cast<size_t>(std::min(kWord, bytes - i)));
        lanes[l] = Mix(lanes[l], word);
      }
    }
    uint64_t h = 0;
    for (uint64_t lane : lanes) h = Mix(h, lane);
    return h;
  }
  std::vector<uint64_t> of_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SESSION_ROW_FINGERPRINTS_H_
