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

// How alike the activity of neurons is: |h| [tokens] of every neuron, centred, of length 1; zeros
// where it does not vary but by rounding.
inline std::vector<double> Centred(std::vector<double> x) {
  double mean = 0;
  double whole = 0;
  for (double v : x) {
    mean += v / static_cast<double>(x.size());
    whole += v * v;
  }
  double square = 0;
  for (double& v : x) {
    v -= mean;
    square += v * v;
  }
  for (double& v : x) v = square > 1e-24 * whole ? v / std::sqrt(square) : 0;
  return x;
}
// The block of every neuron of `activity` [neurons][tokens], in plain loops: centroids, farthest
// first from neuron 0; then the pair of free neuron and block with room that is the most alike, one
// after another. Of equals the lowest neuron, then the lowest block.
inline std::vector<int64_t> Clusters(const std::vector<std::vector<double>>& activity,
                                     int64_t blocks, int64_t turns) {
  const int64_t neurons = std::ssize(activity);
  const auto dot = [](const std::vector<double>& a, const std::vector<double>& b) {
    double s = 0;
    for (size_t i = 0; i < a.size(); ++i) s += a[i] * b[i];
    return s;
  };
  std::vector<std::vector<double>> f;
  for (std::vector<double> x : activity) {
    for (double& v : x) v = std::abs(v);
    f.push_back(Centred(x));
  }
  std::vector<std::vector<double>> centroid = {f[0]};
  while (std::ssize(centroid) < blocks) {
    int64_t farthest = -1;
    double least = 0;
    for (int64_t j = 0; j < neurons; ++j) {
      double nearest = -2;
      for (const auto& c : centroid) nearest = std::max(nearest, dot(f[j], c));
      if (farthest >= 0 && nearest >= least) continue;
      farthest = j;
      least = nearest;
    }
    centroid.push_back(f[farthest]);
  }

  std::vector<int64_t> block(neurons, -1);
  for (int64_t turn = 0; turn < turns; ++turn) {
    std::vector<int64_t> now(neurons, -1);
    std::vector<int64_t> filled(blocks);
    for (int64_t step = 0; step < neurons; ++step) {
      int64_t neuron = -1;
      int64_t to = -1;
      double most = 0;
      for (int64_t j = 0; j < neurons; ++j) {
        for (int64_t b = 0; b < blocks; ++b) {
          if (now[j] >= 0 || filled[b] == neurons / blocks) continue;
          const double alike = dot(f[j], centroid[b]);
          if (neuron >= 0 && alike <= most) continue;
          neuron = j;
          to = b;
          most = alike;
        }
      }
      now[neuron] = to;
      ++filled[to];
    }
    if (now == block) break;
    block = now;
    for (int64_t b = 0; b < blocks; ++b) {
      std::vector<double> sum(f[0].size());
      for (int64_t j = 0; j < neurons; ++j) {
        for (size_t t = 0; t < sum.size(); ++t) sum[t] += block[j] == b ? f[j][t] : 0;
      }
      centroid[b] = Centred(sum);
    }
  }
  return block;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_SPT_SPT_REFERENCE_H_
