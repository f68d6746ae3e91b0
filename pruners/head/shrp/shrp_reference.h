#ifndef SLUICE_PRUNERS_HEAD_SHRP_SHRP_REFERENCE_H_
#define SLUICE_PRUNERS_HEAD_SHRP_SHRP_REFERENCE_H_
// Plain double-precision loops: the specification of the router and of a layer of Expert Attention
// with one head.
#include <cmath>
#include <string>
#include <vector>

#include "sluice/runtime/kernels/linear_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
using Rows = std::vector<std::vector<double>>;

inline std::vector<double> ShrpLogits(const WeightSource& w, int64_t layer, const Rows& x,
                                      size_t heads) {
  std::vector<double> mean(x[0].size());
  for (const auto& row : x)
    for (size_t c = 0; c < row.size(); ++c) mean[c] += row[c] / static_cast<double>(x.size());
  return Affine(w, "blk." + std::to_string(layer) + ".shrp.router", mean, heads);
}

// One head of bidirectional attention: q, k, v [n, d] -> [n, d].
inline Rows Head(const Rows& q, const Rows& k, const Rows& v) {
  Rows out;
  for (const auto& query : q) {
    std::vector<double> p, o(v[0].size());
    double total = 0;
    for (const auto& key : k) {
      double dot = 0;
      for (size_t c = 0; c < key.size(); ++c) dot += query[c] * key[c];
      p.push_back(std::exp(dot / std::sqrt(static_cast<double>(key.size()))));
      total += p.back();
    }
    for (size_t j = 0; j < k.size(); ++j)
      for (size_t c = 0; c < o.size(); ++c) o[c] += p[j] / total * v[j][c];
    out.push_back(o);
  }
  return out;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_HEAD_SHRP_SHRP_REFERENCE_H_
