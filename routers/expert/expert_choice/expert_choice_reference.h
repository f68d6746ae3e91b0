#ifndef SLUICE_ROUTERS_EXPERT_EXPERT_CHOICE_EXPERT_CHOICE_REFERENCE_H_
#define SLUICE_ROUTERS_EXPERT_EXPERT_CHOICE_EXPERT_CHOICE_REFERENCE_H_
// The specification: plain loops in double precision.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
using Table = std::vector<std::vector<double>>;  // [tokens][experts]

inline Table SoftmaxRows(const Table& z) {
  Table p = z;
  for (std::vector<double>& row : p) {
    double sum = 0;
    for (double& v : row) {
      v = std::exp(v);
      sum += v;
    }
    for (double& v : row) v /= sum;
  }
  return p;
}
// Weight of every (token, expert), 0 where the expert did not choose the token.
inline Table ChosenByCapacity(const Table& z, size_t capacity) {
  const Table p = SoftmaxRows(z);
  Table w(z.size(), std::vector<double>(z[0].size()));
  for (size_t u = 0; u < z[0].size(); ++u) {
    std::vector<size_t> order(z.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return p[a][u] > p[b][u]; });
    for (size_t r = 0; r < capacity && r < order.size(); ++r) w[order[r]][u] = p[order[r]][u];
  }
  return w;
}
inline Table ChosenByThreshold(const Table& z, const std::vector<double>& thresholds) {
  Table w = SoftmaxRows(z);
  for (std::vector<double>& row : w) {
    for (size_t u = 0; u < row.size(); ++u) {
      if (row[u] < thresholds[u]) row[u] = 0;
    }
  }
  return w;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_EXPERT_CHOICE_EXPERT_CHOICE_REFERENCE_H_
