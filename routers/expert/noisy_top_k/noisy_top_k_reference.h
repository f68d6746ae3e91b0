#ifndef SLUICE_ROUTERS_EXPERT_NOISY_TOP_K_NOISY_TOP_K_REFERENCE_H_
#define SLUICE_ROUTERS_EXPERT_NOISY_TOP_K_NOISY_TOP_K_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cmath>
#include <cstdint>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
struct NoisyGate {
  std::vector<double> clean, scale, noisy;  // [experts]
};
// gate, noise [experts, dim]; normals [experts], or empty: no noise.
inline NoisyGate NoisyLogits(const std::vector<double>& x, const std::vector<float>& gate,
                             const std::vector<float>& noise, const std::vector<double>& normals) {
  NoisyGate g;
  const size_t experts = gate.size() / x.size();
  for (size_t e = 0; e < experts; ++e) {
    double clean = 0;
    double raw = 0;
    for (size_t j = 0; j < x.size(); ++j) {
      clean += static_cast<double>(gate[e * x.size() + j]) * x[j];
      raw += static_cast<double>(noise[e * x.size() + j]) * x[j];
    }
    const double scale = std::log(1 + std::exp(raw)) + 0.01;
    g.clean.push_back(clean);
    g.scale.push_back(scale);
    g.noisy.push_back(normals.empty() ? clean : clean + normals[e] * scale);
  }
  return g;
}
// Weight of every expert, 0 of those that are not among the k.
inline std::vector<double> WeightsOfTopK(const std::vector<double>& h, int64_t k) {
  std::vector<double> w(h.size());
  double sum = 0;
  for (size_t e = 0; e < h.size(); ++e) {
    int64_t ahead = 0;
    for (size_t v = 0; v < h.size(); ++v) ahead += h[v] > h[e] || (h[v] == h[e] && v < e);
    if (ahead < k) w[e] = std::exp(h[e]);
    sum += w[e];
  }
  for (double& v : w) v /= sum;
  return w;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_NOISY_TOP_K_NOISY_TOP_K_REFERENCE_H_
