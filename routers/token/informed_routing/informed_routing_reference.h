#ifndef SLUICE_ROUTERS_TOKEN_INFORMED_ROUTING_INFORMED_ROUTING_REFERENCE_H_
#define SLUICE_ROUTERS_TOKEN_INFORMED_ROUTING_INFORMED_ROUTING_REFERENCE_H_
// Plain double-precision loops: the specification of the router and the forecaster.
#include <cmath>
#include <string>
#include <vector>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/kernels/linear_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
// `at` is "blk.L.informed.attn." or "blk.L.informed.ffn.".
inline std::vector<double> InformedLogits(const WeightSource& w, const std::string& at,
                                          const std::vector<double>& h, size_t hidden) {
  std::vector<double> x = Affine(w, at + "router0", h, hidden);
  for (double& v : x) v = std::max(v, 0.0);
  return Affine(w, at + "router1", x, 2);
}
// Whether a token is approximated when Gumbel noise of temperature 1 is added to both logits.
inline bool InformedSample(const std::vector<double>& logits, uint64_t seed, uint64_t layer,
                           uint64_t unit, uint64_t position) {
  double noisy[2];
  for (uint64_t k = 0; k < 2; ++k) {
    const double u = RandomUniform({seed, 0, layer, 2 * unit + k, position});
    noisy[k] = logits[k] - std::log(-std::log(u + 1e-8) + 1e-8);
  }
  return noisy[1] > noisy[0];
}
inline std::vector<double> Forecast(const WeightSource& w, const std::string& at,
                                    const std::vector<double>& h, size_t rank, bool silu) {
  std::vector<double> x = Affine(w, at + "down", h, rank);
  for (double& v : x) v = silu ? v / (1.0 + std::exp(-v)) : v;
  return Affine(w, at + "up", x, h.size());
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_TOKEN_INFORMED_ROUTING_INFORMED_ROUTING_REFERENCE_H_
