#ifndef SLUICE_PRUNERS_WEIGHT_DSNOT_DSNOT_REFERENCE_H_
#define SLUICE_PRUNERS_WEIGHT_DSNOT_DSNOT_REFERENCE_H_
// The specification: plain loops in double precision over samples of tokens. Sums over tokens as
// published; the threshold is of such a sum.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
using Matrix = std::vector<std::vector<double>>;

struct DsnotStats {
  std::vector<double> sum, squares, variance;  // s, q, v
};
// samples [samples][tokens][cols], of any lengths.
inline DsnotStats DsnotColumns(const std::vector<Matrix>& samples) {
  const size_t cols = samples[0][0].size();
  DsnotStats s = {std::vector<double>(cols), std::vector<double>(cols), std::vector<double>(cols)};
  const auto count = static_cast<double>(samples.size());
  double all = 0;
  for (const Matrix& sample : samples) all += static_cast<double>(sample.size());
  for (const Matrix& sample : samples) {
    const auto n = static_cast<double>(sample.size());
    for (size_t c = 0; c < cols; ++c) {
      double mean = 0;
      for (const auto& token : sample) mean += token[c] / n;
      for (const auto& token : sample) {
        s.sum[c] += token[c] / count;
        s.squares[c] += token[c] * token[c] / count;
        s.variance[c] += (token[c] - mean) * (token[c] - mean) / all;
      }
    }
  }
  return s;
}

struct DsnotOptions {
  int64_t cycles = 50, group = 0;  // group: m of N:M; 0: unstructured
  double threshold = 0.1, power = 1;
  bool guard = true, same_sign = false;
};
inline double DsnotError(const std::vector<double>& w, const DsnotStats& s,
                         const std::vector<bool>& kept) {
  double e = 0;
  for (size_t c = 0; c < w.size(); ++c) {
    if (!kept[c]) e += w[c] * s.sum[c];
  }
  return e;
}
// The row's mask after its repair.
inline std::vector<bool> Dsnot(const std::vector<double>& w, const DsnotStats& s,
                               const std::vector<bool>& start, const DsnotOptions& o) {
  std::vector<bool> kept = start;
  std::vector<bool> moved(w.size());
  const double first = DsnotError(w, s, start);
  const auto given = [&](size_t c) { return w[c] * s.sum[c]; };
  const auto rank = [&](size_t c) {
    return given(c) == 0 ? 0 : given(c) / std::pow(s.variance[c], o.power);
  };
  const auto worth = [&](size_t c) { return std::fabs(w[c]) * std::sqrt(s.squares[c]); };
  for (int64_t cycle = 0; cycle < o.cycles; ++cycle) {
    const double e = DsnotError(w, s, kept);
    if (!(std::fabs(e) > o.threshold)) break;

    // For every weight that may come back, the one that may go for it; the best of those.
    const auto goes = [&](size_t back) {
      size_t best = w.size();
      for (size_t c = 0; c < w.size(); ++c) {
        if (!start[c] || moved[c]) continue;
        const auto m = static_cast<size_t>(o.group);
        const bool fits = o.group > 0 ? c / m == back / m : e > 0 ? given(c) < 0 : given(c) > 0;
        if (fits && (best == w.size() || worth(c) < worth(best))) best = c;
      }
      return best;
    };
    size_t back = w.size();
    for (size_t c = 0; c < w.size(); ++c) {
      if (start[c] || moved[c]) continue;
      if (o.group > 0 && goes(c) == w.size()) continue;
      const bool better = back == w.size() || (e > 0 ? rank(c) > rank(back) : rank(c) < rank(back));
      if (better) back = c;
    }
    if (back == w.size()) break;
    const size_t out = goes(back);
    if (out == w.size()) break;

    const double after = e + given(out) - given(back);
    if (o.guard && std::fabs(after) >= std::fabs(e)) break;
    if ((o.same_sign || o.group > 0) && after * first < 0) break;
    kept[back] = true;
    kept[out] = false;
    moved[back] = true;
    moved[out] = true;
  }
  return kept;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_WEIGHT_DSNOT_DSNOT_REFERENCE_H_
