#ifndef SLUICE_ROUTERS_EXPERT_SPT_SPT_REFERENCE_H_
#define SLUICE_ROUTERS_EXPERT_SPT_SPT_REFERENCE_H_
// The specification: plain loops in double precision. The whole network is computed, and the
// neurons of blocks that were not chosen are zeroed after the activation. Ties go to the lowest
// block, a block of a NaN score is not chosen.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/runtime/kernels/linear_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
struct RoutedFfn {
  const WeightSource& weights;
  std::string at;  // "blk.L.spt."
  int64_t neurons, blocks;
  int activation = 0;  // 0: ReLU, 1: SiLU, 2: GELU
  bool gated = false;
  bool trained = false;  // scaled by twice the block's probability, before the activation and after

  double Act(double z) const {
    if (activation == 0) return std::max(z, 0.0);
    if (activation == 1) return z / (1 + std::exp(-z));
    return z * 0.5 * std::erfc(-z / std::sqrt(2.0));
  }
  std::vector<double> Probabilities(const std::vector<double>& x) const {
    std::vector<double> p = Affine(weights, at + "router", x, blocks);
    for (double& v : p) v = 1 / (1 + std::exp(-v));
    return p;
  }
  std::vector<bool> Chosen(const std::vector<double>& x, int64_t m) const {
    const std::vector<double> p = Probabilities(x);
    std::vector<bool> chosen(blocks);
    for (int64_t b = 0; b < blocks; ++b) {
      int64_t ahead = 0;
      for (int64_t o = 0; o < blocks; ++o) ahead += p[o] > p[b] || (p[o] == p[b] && o < b);
      chosen[b] = !std::isnan(p[b]) && ahead < m;
    }
    return chosen;
  }
  std::vector<double> Run(const std::vector<double>& x, const std::vector<bool>& chosen) const {
    const std::vector<double> p = Probabilities(x);
    std::vector<double> h = Affine(weights, at + "up", x, neurons);
    std::vector<double> gate;
    if (gated) gate = Affine(weights, at + "gate", x, neurons);
    for (int64_t j = 0; j < neurons; ++j) {
      const int64_t b = j / (neurons / blocks);
      const double c = trained ? 2 * p[b] : 1;
      const double a = gated ? h[j] * Act(gate[j]) : Act(c * h[j]);
      h[j] = chosen[b] ? c * a : 0;
    }
    return Affine(weights, at + "down", h, std::ssize(x));  // the bias once, whatever was chosen
  }
};
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_SPT_SPT_REFERENCE_H_
