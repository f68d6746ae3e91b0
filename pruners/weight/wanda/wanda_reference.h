#ifndef SLUICE_PRUNERS_WEIGHT_WANDA_WANDA_REFERENCE_H_
#define SLUICE_PRUNERS_WEIGHT_WANDA_WANDA_REFERENCE_H_
// The specification: plain loops in double precision, from samples of tokens as the method is
// described. A weight stays where fewer than `stay` others of its group are ahead of it; ahead is
// the greater one, of equals the earlier one.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
using Matrix = std::vector<std::vector<double>>;

// samples [samples][tokens][cols] -> per column the sum of squares, averaged over the samples.
inline std::vector<double> WandaColumns(const std::vector<Matrix>& samples) {
  std::vector<double> q(samples[0][0].size());
  for (const Matrix& sample : samples) {
    for (const auto& token : sample) {
      for (size_t c = 0; c < q.size(); ++c)
        q[c] += token[c] * token[c] / static_cast<double>(samples.size());
    }
  }
  return q;
}

// `stay` of every `group` neighbours in a row.
inline std::vector<std::vector<bool>> Wanda(const Matrix& w, const std::vector<double>& q,
                                            size_t group, int64_t stay) {
  std::vector<std::vector<bool>> kept;
  for (const auto& row : w) {
    kept.emplace_back();
    for (size_t c = 0; c < row.size(); ++c) {
      const auto metric = [&](size_t i) { return std::fabs(row[i]) * std::sqrt(q[i]); };
      int64_t ahead = 0;
      for (size_t i = c / group * group; i < (c / group + 1) * group; ++i)
        ahead += metric(i) > metric(c) || (metric(i) == metric(c) && i < c);
      kept.back().push_back(ahead < stay);
    }
  }
  return kept;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_WEIGHT_WANDA_WANDA_REFERENCE_H_
