#ifndef SLUICE_PRUNERS_WEIGHT_MAGNITUDE_MAGNITUDE_REFERENCE_H_
#define SLUICE_PRUNERS_WEIGHT_MAGNITUDE_MAGNITUDE_REFERENCE_H_
// The specification: plain loops in double precision. A weight stays where fewer than `stay` others
// of its group are ahead of it; ahead is the greater one, of equals the earlier one.
#include <cmath>
#include <cstdint>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
using Weights = std::vector<std::vector<double>>;
using Kept = std::vector<std::vector<bool>>;

inline bool Stays(const std::vector<double>& group, size_t at, int64_t stay) {
  int64_t ahead = 0;
  for (size_t i = 0; i < group.size(); ++i)
    ahead += group[i] > group[at] || (group[i] == group[at] && i < at);
  return ahead < stay;
}

// `stay` of every `group` neighbours in a row.
inline Kept MagnitudeByRow(const Weights& w, size_t group, int64_t stay) {
  Kept kept;
  for (const auto& row : w) {
    kept.emplace_back(row.size());
    for (size_t c = 0; c < row.size(); ++c) {
      std::vector<double> own;
      for (size_t i = c / group * group; i < (c / group + 1) * group; ++i)
        own.push_back(std::fabs(row[i]));
      kept.back()[c] = Stays(own, c % group, stay);
    }
  }
  return kept;
}
// `stay` of the whole matrix.
inline Kept MagnitudeByLayer(const Weights& w, int64_t stay) {
  std::vector<double> all;
  for (const auto& row : w)
    for (double x : row) all.push_back(std::fabs(x));
  Kept kept;
  size_t at = 0;
  for (const auto& row : w) {
    kept.emplace_back();
    for (size_t c = 0; c < row.size(); ++c) kept.back().push_back(Stays(all, at++, stay));
  }
  return kept;
}
// `stay` of the blocks [h, v], by the sum of their magnitudes.
inline Kept MagnitudeByBlock(const Weights& w, size_t h, size_t v, int64_t stay) {
  std::vector<double> sums;
  const size_t across = w[0].size() / v;
  for (size_t b = 0; b < w.size() / h * across; ++b) {
    double sum = 0;
    for (size_t r = b / across * h; r < (b / across + 1) * h; ++r)
      for (size_t c = b % across * v; c < (b % across + 1) * v; ++c) sum += std::fabs(w[r][c]);
    sums.push_back(sum);
  }
  Kept kept(w.size(), std::vector<bool>(w[0].size()));
  for (size_t r = 0; r < w.size(); ++r)
    for (size_t c = 0; c < w[0].size(); ++c) kept[r][c] = Stays(sums, r / h * across + c / v, stay);
  return kept;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_WEIGHT_MAGNITUDE_MAGNITUDE_REFERENCE_H_
