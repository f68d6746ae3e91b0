#ifndef SLUICE_ROUTERS_EXPERT_SMALL_THINKER_SMALL_THINKER_REFERENCE_H_
#define SLUICE_ROUTERS_EXPERT_SMALL_THINKER_SMALL_THINKER_REFERENCE_H_
// The specification: plain loops in double precision. Ties go to the lowest index, a NaN score is
// of no expert, and no tokens are no decisions.
#include <cmath>
#include <cstdint>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
using Rows = std::vector<std::vector<double>>;

inline double Product(const std::vector<double>& a, const std::vector<double>& b) {
  double s = 0;
  for (size_t i = 0; i < a.size(); ++i) s += a[i] * b[i];
  return s;
}
// Weight of every expert for the state h before attention, 0 of those not chosen.
inline std::vector<double> EarlyWeights(const Rows& gate, const std::vector<double>& h, size_t k,
                                        bool softmax, bool renormalise) {
  std::vector<double> score;
  double all = 0;
  for (const auto& row : gate) {
    const double z = Product(row, h);
    score.push_back(softmax ? std::exp(z) : 1 / (1 + std::exp(-z)));
    if (!std::isnan(score.back())) all += score.back();
  }
  std::vector<double> weight(gate.size());
  double chosen = 0;
  for (size_t e = 0; e < gate.size(); ++e) {
    if (std::isnan(score[e])) continue;
    size_t ahead = 0;
    for (size_t o = 0; o < gate.size(); ++o)
      ahead += score[o] > score[e] || (score[o] == score[e] && o < e);
    if (ahead >= k) continue;
    weight[e] = softmax ? score[e] / all : score[e];
    chosen += weight[e];
  }
  if (renormalise && chosen > 0) {
    for (double& w : weight) w /= chosen;
  }
  return weight;
}
// down (relu(gate x) * up x), every neuron computed; matrices [neurons][dim].
inline std::vector<double> ReluGated(const Rows& gate, const Rows& up, const Rows& down,
                                     const std::vector<double>& x) {
  std::vector<double> y(x.size());
  for (size_t j = 0; j < gate.size(); ++j) {
    const double g = std::max(0.0, Product(gate[j], x));
    const double h = g * Product(up[j], x);
    for (size_t c = 0; c < y.size(); ++c) y[c] += h * down[j][c];
  }
  return y;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_SMALL_THINKER_SMALL_THINKER_REFERENCE_H_
