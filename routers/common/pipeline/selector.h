#ifndef SLUICE_ROUTERS_COMMON_PIPELINE_SELECTOR_H_
#define SLUICE_ROUTERS_COMMON_PIPELINE_SELECTOR_H_
// Selector: scores become an Assignment. Stages that each work alone:
//
//   Force          units that are in whatever their score
//   LimitGroups    only the best groups of units may be chosen from
//   TopK, TopP, Threshold, Sample       one item's units
//   ExpertChoice   each unit's items
//   LimitCapacity  a unit takes so many and drops the others
//   Renormalise    the weights of what is left
//
// Everywhere: NaN and -inf ranks are never selected, ties go to the lowest index, units of an item
// are ascending, and nothing allocates.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/types/span.h"
#include "sluice/api/assignment.h"
#include "sluice/api/tensor_view.h"
#include "sluice/api/workspace.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/kernels/top_k/top_k.h"
#include "sluice/runtime/kernels/top_p/top_p.h"

SLUICE_BEGIN_NAMESPACE
namespace pipeline {
inline constexpr float kNever = -std::numeric_limits<float>::infinity();

// ---- One item ----

// Scratch of the functions below for items of at most `units` units.
struct RowScratch {
  explicit RowScratch(int64_t n = 0) : units(n) {}
  int64_t units;
  int64_t bytes() const {
    return std::max(kernels::TopKScratchBytes(units), kernels::TopPScratchBytes(units)) +
           units * static_cast<int64_t>(sizeof(uint32_t));
  }
  void* kernel(std::byte* at) const { return at + units * sizeof(uint32_t); }
  uint32_t* index(std::byte* at) const { return reinterpret_cast<uint32_t*>(at); }
};

// Raises the ranks of these units above every other; of several, the order of their own ranks holds
// no more: ties, so the lowest index first.
inline void Force(absl::Span<float> rank, absl::Span<const int32_t> units) {
  for (int32_t u : units) rank[static_cast<size_t>(u)] = std::numeric_limits<float>::infinity();
}

// Units in `groups` groups of equal size; a group is worth the sum of its best `per_group` ranks;
// the units of all but the best `keep` groups become kNever. NaN ranks count for nothing.
// O(units per_group + groups keep).
inline void LimitGroups(absl::Span<float> rank, int64_t groups, int64_t keep, int64_t per_group,
                        absl::Span<float> scratch) {
  const int64_t size = static_cast<int64_t>(rank.size()) / groups;
  for (int64_t g = 0; g < groups; ++g) {
    // The best per_group of the group, by repeated selection below the last value taken.
    float worth = 0;
    float last = std::numeric_limits<float>::infinity();
    int64_t last_at = -1;
    for (int64_t r = 0; r < std::min(per_group, size); ++r) {
      int64_t best = -1;
      for (int64_t j = 0; j < size; ++j) {
        const float x = rank[g * size + j];
        const bool taken = x > last || (x == last && j <= last_at);
        if (std::isnan(x) || taken) continue;
        if (best < 0 || x > rank[g * size + best]) best = j;
      }
      if (best < 0) break;
      last = rank[g * size + best];
      last_at = best;
      worth += last;
    }
    scratch[g] = std::isnan(worth) ? kNever : worth;
  }
  for (int64_t g = 0; g < groups; ++g) {
    int64_t better = 0;
    for (int64_t h = 0; h < groups; ++h)
      better += scratch[h] > scratch[g] || (scratch[h] == scratch[g] && h < g);
    if (better >= keep) std::fill_n(rank.begin() + g * size, size, kNever);
  }
}

// Writes the chosen units, ascending, to `out`; returns how many. `at`: RowScratch bytes.
inline int64_t TopK(absl::Span<const float> rank, int64_t k, const RowScratch& scratch,
                    std::byte* at, int32_t* out) {
  uint32_t* index = scratch.index(at);
  const auto n = static_cast<int64_t>(rank.size());
  const auto count = kernels::TopK(rank.data(), n, k, index, scratch.kernel(at)).count;
  std::copy_n(index, count, out);
  return count;
}
// The fewest units whose ranks sum to the share p of the positive ranks' sum.
inline int64_t TopP(absl::Span<const float> rank, float p, const RowScratch& scratch, std::byte* at,
                    int32_t* out) {
  uint32_t* index = scratch.index(at);
  const auto n = static_cast<int64_t>(rank.size());
  const int64_t count = kernels::TopP(rank.data(), n, p, index, scratch.kernel(at));
  std::copy_n(index, count, out);
  return count;
}
// Every unit of at least this rank.
inline int64_t Threshold(absl::Span<const float> rank, float least, int32_t* out) {
  int64_t count = 0;
  for (size_t u = 0; u < rank.size(); ++u) {
    if (rank[u] >= least && rank[u] > kNever) out[count++] = static_cast<int32_t>(u);
  }
  return count;
}
// k units without replacement with probabilities softmax(rank): the top k of rank + Gumbel noise.
// `key.unit` is overwritten. noisy [units]: scratch.
inline int64_t Sample(absl::Span<const float> rank, int64_t k, RngKey key, absl::Span<float> noisy,
                      const RowScratch& scratch, std::byte* at, int32_t* out) {
  for (size_t u = 0; u < rank.size(); ++u) {
    key.unit = u;
    const double uniform = std::max(RandomUniform(key), 0x1p-53);
    noisy[u] = rank[u] + static_cast<float>(-std::log(-std::log(uniform)));
  }
  return TopK(noisy.first(rank.size()), k, scratch, at, out);
}

// ---- All items ----

// Each unit takes its `capacity` best items (arXiv 2202.09368): row-major ranks and weights
// [items, units]. Not causal. An item may get no unit and as many as there are. Writes a whole
// assignment. `column` [items] floats, `chosen` [units * capacity], `at`: RowScratch(items) bytes.
// O(items units).
inline void ExpertChoice(MatrixView<const float> rank, MatrixView<const float> weight,
                         int64_t capacity, absl::Span<float> column, absl::Span<int32_t> chosen,
                         const RowScratch& scratch, std::byte* at, Assignment& out) {
  const int64_t items = rank.rows;
  const int64_t units = rank.cols;
  out.items = items;
  out.units = units;
  std::fill_n(out.row_ptr.begin(), items + 1, 0);
  // Row ends, shifted by one: counts first, then where each row's next entry goes.
  for (int64_t u = 0; u < units; ++u) {
    for (int64_t i = 0; i < items; ++i) {
      column[i] = rank.row(i)[u];
      out.nan_scores += std::isnan(column[i]);
    }
    int32_t* mine = chosen.data() + u * capacity;
    const int64_t n = TopK(column.first(items), capacity, scratch, at, mine);
    std::fill(mine + n, mine + capacity, -1);
    for (int64_t j = 0; j < n; ++j) ++out.row_ptr[mine[j] + 1];
  }
  for (int64_t i = 0; i < items; ++i) out.row_ptr[i + 1] += out.row_ptr[i];

  for (int64_t u = 0; u < units; ++u) {
    for (int64_t j = 0; j < capacity && chosen[u * capacity + j] >= 0; ++j) {
      const int32_t i = chosen[u * capacity + j];
      const int64_t e = out.row_ptr[i]++;
      out.unit[e] = static_cast<int32_t>(u);
      out.weight[e] = weight.row(i)[u];
      if (!out.score.empty()) out.score[e] = rank.row(i)[u];
    }
  }
  for (int64_t i = items; i > 0; --i) out.row_ptr[i] = out.row_ptr[i - 1];
  out.row_ptr[0] = 0;
}

// How many items a unit takes. The two rules in use differ in the factor k and in rounding:
// without it round(factor items / units), with it ceil(factor items k / units).
inline int64_t Capacity(double factor, bool counts_k, int64_t items, int64_t k, int64_t units,
                        int64_t least) {
  const double each = factor * static_cast<double>(items) / static_cast<double>(units);
  const double c = counts_k ? std::ceil(each * static_cast<double>(k)) : std::round(each);
  return std::max(least, static_cast<int64_t>(c));
}

enum class CapacityOrder : uint8_t {
  kSlot,      // every item's first choice, in item order, then the second choices, ...
  kPriority,  // the same, items by falling best score
  kScore,     // each unit keeps its highest scores
  kPosition,  // each unit keeps its first items, whatever they thought of it
};
// Storage of LimitCapacity.
struct CapacityScratch {
  absl::Span<int32_t> order;  // [entries]
  absl::Span<int32_t> items;  // [items]
  absl::Span<int64_t> count;  // [units]
  absl::Span<uint8_t> keep;   // [entries]
};

namespace selector_internal {
// a before b: the higher score, then the lower index.
inline bool Before(float score_a, int32_t a, float score_b, int32_t b) {
  return score_a != score_b ? score_a > score_b : a < b;
}

// Keeps entries slot by slot: an item's r-th best entry is its r-th slot.
inline void KeepBySlot(const Assignment& a, int64_t capacity, bool by_priority, CapacityScratch s) {
  int64_t slots = 0;
  for (int64_t i = 0; i < a.items; ++i) {
    const int64_t begin = a.row_ptr[i];
    const int64_t end = a.row_ptr[i + 1];
    slots = std::max(slots, end - begin);
    s.items[i] = static_cast<int32_t>(i);
    for (int64_t e = begin; e < end; ++e) s.order[e] = static_cast<int32_t>(e);
    std::sort(s.order.begin() + begin, s.order.begin() + end,
              [&](int32_t x, int32_t y) { return Before(a.score[x], x, a.score[y], y); });
  }
  if (by_priority) {
    const auto best = [&](int32_t i) {
      return a.row_ptr[i] < a.row_ptr[i + 1] ? a.score[s.order[a.row_ptr[i]]] : kNever;
    };
    std::sort(s.items.begin(), s.items.begin() + a.items,
              [&](int32_t x, int32_t y) { return Before(best(x), x, best(y), y); });
  }
  for (int64_t slot = 0; slot < slots; ++slot) {
    for (int64_t r = 0; r < a.items; ++r) {
      const int32_t i = s.items[r];
      if (a.row_ptr[i] + slot >= a.row_ptr[i + 1]) continue;
      const int32_t e = s.order[a.row_ptr[i] + slot];
      s.keep[e] = s.count[a.unit[e]]++ < capacity;
    }
  }
}

// Keeps each unit's highest scores: entries by falling score, the earlier item first.
inline void KeepByScore(const Assignment& a, int64_t capacity, CapacityScratch s) {
  const int64_t entries = a.entries();
  for (int64_t e = 0; e < entries; ++e) s.order[e] = static_cast<int32_t>(e);
  std::sort(s.order.begin(), s.order.begin() + entries,
            [&](int32_t x, int32_t y) { return Before(a.score[x], x, a.score[y], y); });
  for (int64_t r = 0; r < entries; ++r) {
    const int32_t e = s.order[r];
    s.keep[e] = s.count[a.unit[e]]++ < capacity;
  }
}

inline void KeepByPosition(const Assignment& a, int64_t capacity, CapacityScratch s) {
  const int64_t entries = a.entries();
  for (int64_t e = 0; e < entries; ++e) s.keep[e] = s.count[a.unit[e]]++ < capacity;
}
}  // namespace selector_internal

// Drops what is over `capacity` a unit; what is dropped goes to a.dropped, the survivors keep their
// weights. Needs a.score. O(entries log entries); by position O(entries).
inline void LimitCapacity(int64_t capacity, CapacityOrder order, CapacityScratch s, Assignment& a) {
  std::fill_n(s.count.begin(), a.units, 0);
  if (order == CapacityOrder::kScore) {
    selector_internal::KeepByScore(a, capacity, s);
  } else if (order == CapacityOrder::kPosition) {
    selector_internal::KeepByPosition(a, capacity, s);
  } else {
    selector_internal::KeepBySlot(a, capacity, order == CapacityOrder::kPriority, s);
  }

  int64_t to = 0;
  int64_t begin = 0;
  for (int64_t i = 0; i < a.items; ++i) {
    const int64_t end = a.row_ptr[i + 1];
    for (int64_t e = begin; e < end; ++e) {
      if (s.keep[e] == 0) {
        a.dropped[a.num_dropped++] = {static_cast<int32_t>(i), a.unit[e]};
        continue;
      }
      a.unit[to] = a.unit[e];
      a.weight[to] = a.weight[e];
      a.score[to] = a.score[e];
      ++to;
    }
    begin = end;
    a.row_ptr[i + 1] = to;
  }
}

enum class Renormalise : uint8_t {
  kNone,     // weights as the gate gave them
  kSum,      // divided by their sum (+ 1e-20)
  kSoftmax,  // softmax over the chosen logits
};
// The weights of one item's chosen units, times `scale`. O(n).
inline void NormaliseRow(Renormalise kind, float scale, absl::Span<float> weight) {
  float most = kNever;
  for (float w : weight) most = std::max(most, w);
  float sum = 0;
  for (float& w : weight) {
    if (kind == Renormalise::kSoftmax) w = std::exp(w - most);
    sum += w;
  }
  const float by = kind == Renormalise::kNone ? scale : scale / (sum + 1e-20f);
  for (float& w : weight) w *= by;
}
}  // namespace pipeline
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_COMMON_PIPELINE_SELECTOR_H_
