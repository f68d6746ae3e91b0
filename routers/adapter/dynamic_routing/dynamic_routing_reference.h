#ifndef SLUICE_ROUTERS_ADAPTER_DYNAMIC_ROUTING_DYNAMIC_ROUTING_REFERENCE_H_
#define SLUICE_ROUTERS_ADAPTER_DYNAMIC_ROUTING_DYNAMIC_ROUTING_REFERENCE_H_
// The specification: plain loops in double precision. Choice 0 is the null expert. Ties go to the
// lowest choice, a NaN logit is never chosen.
#include <cmath>
#include <cstdint>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
// How far v lies from its mean (or from 0), each entry in units of the root of the mean square.
inline std::vector<double> Standard(std::vector<double> v, bool centre) {
  double mean = 0;
  for (double x : v) mean += x;
  mean = centre ? mean / static_cast<double>(v.size()) : 0;
  double variance = 0;
  for (double x : v) variance += (x - mean) * (x - mean);
  variance /= static_cast<double>(v.size());
  for (double& x : v) x = variance == 0 ? 0 : (x - mean) / std::sqrt(variance);
  return v;
}
// Weight of the null expert and of every prototype for the token x, 0 of those not chosen.
inline std::vector<double> PrototypeWeights(const std::vector<std::vector<double>>& prototypes,
                                            const std::vector<double>& x, size_t k,
                                            double null_logit, double temperature, bool centre) {
  const std::vector<double> token = Standard(x, centre);
  std::vector<double> logit = {null_logit};
  for (const auto& prototype : prototypes) {
    const std::vector<double> v = Standard(prototype, centre);
    double dot = 0;
    for (size_t c = 0; c < v.size(); ++c) dot += token[c] * v[c];
    logit.push_back(dot / std::sqrt(static_cast<double>(v.size())) / temperature);
  }
  std::vector<double> weight(logit.size());
  double sum = 0;
  for (size_t e = 0; e < logit.size(); ++e) {
    if (std::isnan(logit[e])) continue;
    size_t ahead = 0;
    for (size_t o = 0; o < logit.size(); ++o)
      ahead += logit[o] > logit[e] || (logit[o] == logit[e] && o < e);
    if (ahead < k) weight[e] = std::exp(logit[e]);
    sum += weight[e];
  }
  for (double& w : weight) w /= sum;
  return weight;
}
// B (A x), A [rank][in], B [out][rank].
inline std::vector<double> LowRank(const std::vector<std::vector<double>>& a,
                                   const std::vector<std::vector<double>>& b,
                                   const std::vector<double>& x) {
  std::vector<double> y(b.size());
  for (size_t o = 0; o < b.size(); ++o) {
    for (size_t r = 0; r < a.size(); ++r) {
      for (size_t c = 0; c < x.size(); ++c) y[o] += b[o][r] * a[r][c] * x[c];
    }
  }
  return y;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ADAPTER_DYNAMIC_ROUTING_DYNAMIC_ROUTING_REFERENCE_H_
