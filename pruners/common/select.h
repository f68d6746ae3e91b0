#ifndef SLUICE_PRUNERS_COMMON_SELECT_H_
#define SLUICE_PRUNERS_COMMON_SELECT_H_
// Select by pattern: scores of weights and a target become a mask. The second stage of every pruner
// that scores. What the start mask has dropped stays dropped and counts as such; a NaN score goes
// before any number; ties keep the lowest index.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "absl/types/span.h"
#include "sluice/api/weight_pruner.h"

SLUICE_BEGIN_NAMESPACE
namespace pruning {
// A candidate is a weight or a block: its score, -inf where it is gone already.
inline constexpr double kGone = -std::numeric_limits<double>::infinity();

// How many of n stay.
inline int64_t Stay(const PruneTarget& t, int64_t n) {
  if (t.kind == PruneTarget::Kind::kCount) return t.count;
  return n - static_cast<int64_t>(std::floor(t.ratio * static_cast<double>(n)));
}

// Marks those that stay: the `stay` highest, or with costs the highest score per cost as long as
// each still fits the budget. order: scratch. O(n log n).
inline void Keep(absl::Span<const double> score, const PruneTarget& t,
                 absl::Span<const double> cost, std::vector<int64_t>& order,
                 std::vector<uint8_t>& kept) {
  const auto n = static_cast<int64_t>(score.size());
  const bool by_cost = t.kind == PruneTarget::Kind::kCost;
  order.resize(score.size());
  kept.assign(score.size(), 0);
  std::iota(order.begin(), order.end(), 0);
  // Numbers first, then what is no number, then what is gone.
  const auto rank = [&](int64_t i) {
    const double x = score[static_cast<size_t>(i)];
    return std::isnan(x) ? 1 : x == kGone ? 2 : 0;
  };
  const auto worth = [&](int64_t i) {
    const double x = score[static_cast<size_t>(i)];
    return by_cost ? x / cost[static_cast<size_t>(i)] : x;
  };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    if (rank(a) != rank(b)) return rank(a) < rank(b);
    return rank(a) == 0 && worth(a) > worth(b);
  });

  const int64_t stay = by_cost ? n : std::min(n, Stay(t, n));
  double left = t.cost;
  for (int64_t r = 0; r < stay; ++r) {
    const auto i = static_cast<size_t>(order[static_cast<size_t>(r)]);
    if (score[i] == kGone) break;  // and so are all that follow
    if (by_cost && cost[i] > left) continue;
    left -= by_cost ? cost[i] : 0;
    kept[i] = 1;
  }
}

namespace select_internal {
struct Scratch {
  std::vector<double> score, cost;
  std::vector<int64_t> order;
  std::vector<uint8_t> kept;
};

inline double ScoreOf(MatrixView<const float> scores, const Mask* start, int64_t r, int64_t c) {
  if (start != nullptr && !start->kept(r, c)) return kGone;
  return static_cast<double>(scores.row(r)[c]);
}
inline double CostOf(const PruneTarget& t, int64_t c) {
  return t.column_cost.empty() ? 1.0 : static_cast<double>(t.column_cost[static_cast<size_t>(c)]);
}

inline void SelectRow(MatrixView<const float> scores, const PruneTarget& t, const Mask* start,
                      int64_t r, Scratch& s, Mask& out) {
  const bool n_of_m = t.kind == PruneTarget::Kind::kNofM;
  const int64_t group = n_of_m ? t.m : std::max<int64_t>(1, scores.cols);
  PruneTarget each = t;
  if (n_of_m) {
    each.kind = PruneTarget::Kind::kCount;
    each.count = t.n;
  }
  for (int64_t b = 0; b < scores.cols; b += group) {
    s.score.clear();
    s.cost.clear();
    for (int64_t c = b; c < b + group; ++c) {
      s.score.push_back(ScoreOf(scores, start, r, c));
      s.cost.push_back(CostOf(t, c));
    }
    Keep(s.score, each, s.cost, s.order, s.kept);
    for (int64_t j = 0; j < group; ++j) out.Set(r, b + j, s.kept[static_cast<size_t>(j)] != 0);
  }
}

inline void SelectLayer(MatrixView<const float> scores, const PruneTarget& t, const Mask* start,
                        Scratch& s, Mask& out) {
  for (int64_t r = 0; r < scores.rows; ++r) {
    for (int64_t c = 0; c < scores.cols; ++c) {
      s.score.push_back(ScoreOf(scores, start, r, c));
      s.cost.push_back(CostOf(t, c));
    }
  }
  Keep(s.score, t, s.cost, s.order, s.kept);
  for (int64_t i = 0; i < static_cast<int64_t>(s.kept.size()); ++i)
    out.Set(i / scores.cols, i % scores.cols, s.kept[static_cast<size_t>(i)] != 0);
}

// A block's score is the sum of its weights' scores; one that the start mask dropped whole is gone.
inline void SelectBlocks(MatrixView<const float> scores, const PruneTarget& t, const Mask* start,
                         Scratch& s, Mask& out) {
  const int64_t across = scores.cols / t.block_cols;
  const int64_t blocks = scores.rows / t.block_rows * across;
  const auto each = [&](int64_t b, const auto& visit) {
    for (int64_t i = 0; i < t.block_rows; ++i) {
      for (int64_t j = 0; j < t.block_cols; ++j)
        visit(b / across * t.block_rows + i, b % across * t.block_cols + j);
    }
  };
  for (int64_t b = 0; b < blocks; ++b) {
    double sum = 0;
    double cost = 0;
    int64_t there = 0;
    each(b, [&](int64_t r, int64_t c) {
      cost += CostOf(t, c);
      if (start != nullptr && !start->kept(r, c)) return;
      sum += static_cast<double>(scores.row(r)[c]);
      ++there;
    });
    s.score.push_back(there > 0 ? sum : kGone);
    s.cost.push_back(t.column_cost.empty() ? 1.0 : cost);
  }
  Keep(s.score, t, s.cost, s.order, s.kept);
  for (int64_t b = 0; b < blocks; ++b) {
    each(b, [&](int64_t r, int64_t c) {
      const bool there = start == nullptr || start->kept(r, c);
      out.Set(r, c, there && s.kept[static_cast<size_t>(b)] != 0);
    });
  }
}
}  // namespace select_internal

// scores [rows, cols] -> the mask of the target. `out` has that shape. Rows run in parallel where
// every row stands for itself. O(n log n).
inline void SelectMask(MatrixView<const float> scores, const PruneTarget& t, const Mask* start,
                       const RunContext& ctx, Mask& out) {
  if (scores.rows == 0 || scores.cols == 0) return;
  select_internal::Scratch s;
  if (t.scope == PruneTarget::Scope::kLayer) {
    select_internal::SelectLayer(scores, t, start, s, out);
    return;
  }
  if (t.scope == PruneTarget::Scope::kBlock) {
    select_internal::SelectBlocks(scores, t, start, s, out);
    return;
  }
  InlineExecutor alone;
  Executor& executor = ctx.executor != nullptr ? *ctx.executor : alone;
  executor.ParallelFor(scores.rows, 8, [&](int64_t begin, int64_t end, int) {
    select_internal::Scratch mine;
    for (int64_t r = begin; r < end; ++r)
      select_internal::SelectRow(scores, t, start, r, mine, out);
  });
}
}  // namespace pruning
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_COMMON_SELECT_H_
