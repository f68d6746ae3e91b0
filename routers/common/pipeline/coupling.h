#ifndef SLUICE_ROUTERS_COMMON_PIPELINE_COUPLING_H_
#define SLUICE_ROUTERS_COMMON_PIPELINE_COUPLING_H_
// Coupling: what mixes the scores of several items, or of several moments, between Gate and
// Selector. In place; every part does nothing at its neutral setting, bit for bit.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/types/span.h"
#include "sluice/api/assignment.h"
#include "sluice/api/tensor_view.h"

SLUICE_BEGIN_NAMESPACE
namespace pipeline {
// Loss-free balance: a bias a unit, for ranking only, that rises where a unit was used less than
// the mean and falls where it was used more (arXiv 2408.15664). A unit at the mean keeps its bias.
struct BalanceBias {
  absl::Span<float> bias;  // [units]; the caller's, starts at 0
  double rate = 1e-3;

  // counts [units]: items that each unit was given. O(units).
  void Observe(absl::Span<const int64_t> counts) {
    int64_t total = 0;
    for (int64_t c : counts) total += c;
    const double mean = static_cast<double>(total) / static_cast<double>(counts.size());
    for (size_t u = 0; u < bias.size(); ++u) {
      const double under = mean - static_cast<double>(counts[u]);
      const double sign = under > 0 ? 1.0 : under < 0 ? -1.0 : 0.0;
      bias[u] = static_cast<float>(static_cast<double>(bias[u]) + rate * sign);
    }
  }
};

// Scores remember: now = (1 - keep) now + keep before. `state` [items, units] is the caller's; it
// takes the result. keep = 0 changes no score; a NaN before counts for nothing, so that one bad
// step spoils no later one. O(items units).
inline void Ema(MatrixView<float> scores, MatrixView<float> state, float keep) {
  for (int64_t i = 0; i < scores.rows; ++i) {
    for (int64_t u = 0; u < scores.cols; ++u) {
      float& now = scores.row(i)[u];
      float& before = state.row(i)[u];
      if (keep != 0 && !std::isnan(before)) now = (1 - keep) * now + keep * before;
      before = now;
    }
  }
}

// A row-stochastic coupling of `row_ptr.size() - 1` items with all, in CSR form: S[r, item[e]] =
// weight[e].
struct ItemGraph {
  absl::Span<const int64_t> row_ptr;
  absl::Span<const int32_t> item;
  absl::Span<const float> weight;
};
// Graph of Tokens (arXiv 2505.00792, form inferred): out = (1 - alpha) scores + alpha S scores for
// the items [first, first + out.rows), whose edges are the rows of S. With first, one new token is
// mixed with the cached scores of all before it. out may not overlap scores. alpha = 0 copies, and
// so does S = I with any alpha, bit for bit; an item without edges keeps its scores. A NaN score is
// NaN in every item that it is mixed into. Causal where S is. O(entries units).
inline void MixItems(MatrixView<const float> scores, const ItemGraph& s, float alpha,
                     MatrixView<float> out, int64_t first = 0) {
  for (int64_t r = 0; r < out.rows; ++r) {
    const float* own = scores.row(first + r);
    float* mixed = out.row(r);
    const int64_t begin = s.row_ptr[r];
    const int64_t end = s.row_ptr[r + 1];
    if (alpha == 0 || begin == end) {
      std::copy_n(own, out.cols, mixed);
      continue;
    }
    std::fill_n(mixed, out.cols, 0.0f);
    for (int64_t e = begin; e < end; ++e) {
      const float w = s.weight[e];
      const float* other = scores.row(s.item[e]);
      for (int64_t u = 0; u < out.cols; ++u) mixed[u] += w * other[u];
    }
    if (alpha == 1) continue;
    for (int64_t u = 0; u < out.cols; ++u) mixed[u] = own[u] + alpha * (mixed[u] - own[u]);
  }
}

// Sinkhorn balance: scales rows and columns of exp(logits) by turns until every item gives 1 and
// every unit takes items / units. Writes the scaled matrix over the logits; d0 [items] and d1
// [units] are scratch. Stops where the mean change of the column scale is under `tolerance`, or
// after `turns`. Returns the turns done. O(turns items units).
inline int64_t Sinkhorn(MatrixView<float> logits, absl::Span<double> d0, absl::Span<double> d1,
                        double tolerance = 1e-4, int64_t turns = 100) {
  const int64_t items = logits.rows;
  const int64_t units = logits.cols;
  constexpr double kTiny = 1e-8;
  for (int64_t i = 0; i < items; ++i) {
    for (int64_t u = 0; u < units; ++u) logits.row(i)[u] = std::exp(logits.row(i)[u]);
    d0[i] = 1;
  }
  for (int64_t u = 0; u < units; ++u) d1[u] = 1;

  int64_t turn = 0;
  for (double change = 1; turn < turns && change > tolerance; ++turn) {
    for (int64_t i = 0; i < items; ++i) {
      double sum = 0;
      for (int64_t u = 0; u < units; ++u) sum += d1[u] * static_cast<double>(logits.row(i)[u]);
      d0[i] = 1 / (static_cast<double>(items) * (sum + kTiny));
    }
    change = 0;
    for (int64_t u = 0; u < units; ++u) {
      double sum = 0;
      for (int64_t i = 0; i < items; ++i) sum += d0[i] * static_cast<double>(logits.row(i)[u]);
      const double scale = 1 / (static_cast<double>(units) * (sum + kTiny));
      change += std::abs(scale - d1[u]) / static_cast<double>(units);
      d1[u] = scale;
    }
  }
  for (int64_t i = 0; i < items; ++i) {
    for (int64_t u = 0; u < units; ++u) {
      const double x = d0[i] * d1[u] * static_cast<double>(logits.row(i)[u]);
      logits.row(i)[u] = static_cast<float>(x * static_cast<double>(items));
    }
  }
  return turn;
}
}  // namespace pipeline
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_COMMON_PIPELINE_COUPLING_H_
