#ifndef SLUICE_ROUTERS_EXPERT_HYDRA_HYDRA_REFERENCE_H_
#define SLUICE_ROUTERS_EXPERT_HYDRA_HYDRA_REFERENCE_H_
// The specification: plain loops in double precision, over the tokens x [items][dim] of one
// sequence and the gate's matrix [experts][dim], as in the paper: pooled first, then the gate.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
// The token, or mean of tokens, that decides for token i.
inline std::vector<double> PooledToken(const std::vector<std::vector<double>>& x, size_t i,
                                       size_t chunk, const std::string& pool) {
  const size_t begin = i / chunk * chunk;
  size_t from = begin;
  size_t to = i + 1;  // prefix
  if (pool == "first") to = begin + 1;
  if (pool == "mean") to = std::min(begin + chunk, x.size());
  if (pool == "previous" && begin > 0) {
    from = begin - chunk;
    to = begin;
  }
  std::vector<double> mean(x[0].size());
  for (size_t t = from; t < to; ++t) {
    for (size_t c = 0; c < mean.size(); ++c) mean[c] += x[t][c] / static_cast<double>(to - from);
  }
  return mean;
}
// Weight of every expert for token i, 0 of those that are not among its k.
inline std::vector<double> ChunkWeights(const std::vector<std::vector<double>>& x,
                                        const std::vector<std::vector<double>>& gate, size_t i,
                                        size_t chunk, const std::string& pool, size_t k,
                                        double temperature) {
  const std::vector<double> m = PooledToken(x, i, chunk, pool);
  std::vector<double> z(gate.size());
  for (size_t e = 0; e < gate.size(); ++e) {
    for (size_t c = 0; c < m.size(); ++c) z[e] += gate[e][c] * m[c] / temperature;
  }
  std::vector<double> w(gate.size());
  double sum = 0;
  for (size_t e = 0; e < z.size(); ++e) {
    size_t ahead = 0;
    for (size_t v = 0; v < z.size(); ++v) ahead += z[v] > z[e] || (z[v] == z[e] && v < e);
    if (ahead < k) w[e] = std::exp(z[e]);
    sum += w[e];
  }
  for (double& v : w) v /= sum;
  return w;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_HYDRA_HYDRA_REFERENCE_H_
