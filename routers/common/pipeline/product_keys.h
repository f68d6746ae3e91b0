#ifndef SLUICE_ROUTERS_COMMON_PIPELINE_PRODUCT_KEYS_H_
#define SLUICE_ROUTERS_COMMON_PIPELINE_PRODUCT_KEYS_H_
// A Selector over very many units that are pairs of few halves (arXiv 1907.05242): unit i * n2 + j
// scores first[i] + second[j], and the best are found without looking at all n1 * n2.
#include <algorithm>
#include <cstdint>

#include "absl/types/span.h"
#include "sluice/api/workspace.h"
#include "sluice/routers/common/pipeline/selector.h"

SLUICE_BEGIN_NAMESPACE
namespace pipeline {
class TopPairs {
 public:
  TopPairs() = default;
  // The best t of each of the halves [n1] and [n2]: t in [1, min(n1, n2)]; all t * t pairs of them,
  // or, with `best`, the best t of those, which are the best t of all n1 * n2.
  TopPairs(int64_t n1, int64_t n2, int64_t t, bool best)
      : n1_(n1), n2_(n2), t_(t), best_(best), row_(std::max({n1, n2, t * t})) {}

  int64_t pairs() const { return best_ ? t_ : t_ * t_; }  // chosen at most
  // Scratch of one Choose.
  int64_t bytes() const {
    return Aligned(row_.bytes()) + Aligned(2 * t_ * static_cast<int64_t>(sizeof(int32_t))) +
           2 * Aligned(t_ * t_ * static_cast<int64_t>(sizeof(float)));
  }

  // Writes the chosen units, ascending, and their sums; returns how many. A half that is NaN or
  // -inf is in no pair; ties of a half go to its lower index, ties of sums to the lower unit of the
  // t * t. O(n1 + n2 + t^2).
  int64_t Choose(absl::Span<const float> first, absl::Span<const float> second, std::byte* scratch,
                 int32_t* unit, float* sum) const {
    std::byte* row = scratch;
    auto* i = reinterpret_cast<int32_t*>(row + Aligned(row_.bytes()));
    int32_t* j = i + t_;
    const int64_t ni = TopK(first, t_, row_, row, i);
    const int64_t nj = TopK(second, t_, row_, row, j);
    if (!best_) return Cross(first, second, {i, Size(ni)}, {j, Size(nj)}, unit, sum);

    auto* units = reinterpret_cast<int32_t*>(
        reinterpret_cast<std::byte*>(i) + Aligned(2 * t_ * static_cast<int64_t>(sizeof(int32_t))));
    auto* sums = reinterpret_cast<float*>(reinterpret_cast<std::byte*>(units) +
                                          Aligned(t_ * t_ * static_cast<int64_t>(sizeof(float))));
    const int64_t n = Cross(first, second, {i, Size(ni)}, {j, Size(nj)}, units, sums);
    const int64_t chosen = TopK({sums, Size(n)}, t_, row_, row, unit);
    for (int64_t c = 0; c < chosen; ++c) {
      sum[c] = sums[unit[c]];
      unit[c] = units[unit[c]];
    }
    return chosen;
  }

 private:
  static int64_t Aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
  static size_t Size(int64_t n) { return static_cast<size_t>(n); }

  // All pairs of these halves; ascending, as the halves are.
  int64_t Cross(absl::Span<const float> first, absl::Span<const float> second,
                absl::Span<const int32_t> is, absl::Span<const int32_t> js, int32_t* unit,
                float* sum) const {
    int64_t n = 0;
    for (int32_t i : is) {
      for (int32_t j : js) {
        unit[n] = static_cast<int32_t>(i * n2_ + j);
        sum[n] = first[Size(i)] + second[Size(j)];
        ++n;
      }
    }
    return n;
  }

  int64_t n1_ = 0;
  int64_t n2_ = 0;
  int64_t t_ = 0;
  bool best_ = false;
  RowScratch row_;
};
}  // namespace pipeline
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_COMMON_PIPELINE_PRODUCT_KEYS_H_
