#ifndef SLUICE_ROUTERS_EXPERT_ROMA_ROMA_REFERENCE_H_
#define SLUICE_ROUTERS_EXPERT_ROMA_ROMA_REFERENCE_H_
// The specification: plain loops in double precision. Ties go to the lowest index.
#include <cmath>
#include <cstdint>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
using Matrix = std::vector<std::vector<double>>;

inline double SquaredDistance(const std::vector<double>& a, const std::vector<double>& b) {
  double d = 0;
  for (size_t c = 0; c < a.size(); ++c) d += (a[c] - b[c]) * (a[c] - b[c]);
  return d;
}
// The row of W for the point x: weights of the k nearest `points` that may be taken, 0 of others.
inline std::vector<double> KernelRow(const Matrix& points, const std::vector<bool>& taken,
                                     const std::vector<double>& x, size_t k, double sigma) {
  std::vector<double> w(points.size());
  double sum = 0;
  for (size_t j = 0; j < points.size(); ++j) {
    if (!taken[j]) continue;
    const double d = SquaredDistance(points[j], x);
    size_t ahead = 0;
    for (size_t o = 0; o < points.size(); ++o) {
      const double other = SquaredDistance(points[o], x);
      ahead += taken[o] && (other < d || (other == d && o < j));
    }
    if (ahead < k) w[j] = std::exp(-d / (2 * sigma * sigma));
    sum += w[j];
  }
  for (double& v : w) v = sum > 0 ? v / sum : 0;
  return w;
}
inline std::vector<double> SoftmaxOf(const Matrix& gate, const std::vector<double>& h) {
  std::vector<double> r;
  double sum = 0;
  for (const auto& row : gate) {
    double z = 0;
    for (size_t c = 0; c < h.size(); ++c) z += row[c] * h[c];
    r.push_back(std::exp(z));
    sum += r.back();
  }
  for (double& v : r) v /= sum;
  return r;
}
// What the refit minimises at the change D [experts][dim] of the gate: the sum over samples with
// neighbours of |D h - off|^2, off = log target - log r less its mean, and the ridge's part.
inline double RefitLoss(const Matrix& gate, const Matrix& change, const Matrix& hidden,
                        const Matrix& w, double lambda, double ridge) {
  const size_t experts = gate.size();
  double loss = 0;
  double trace = 0;
  for (size_t i = 0; i < hidden.size(); ++i) {
    double any = 0;
    for (double v : w[i]) any += v;
    if (any == 0) continue;
    const std::vector<double> r = SoftmaxOf(gate, hidden[i]);
    std::vector<double> off(experts);
    double mean = 0;
    for (size_t e = 0; e < experts; ++e) {
      double near = 0;
      for (size_t j = 0; j < hidden.size(); ++j) near += w[i][j] * SoftmaxOf(gate, hidden[j])[e];
      off[e] = std::log(((1 - lambda) * r[e] + lambda * near) / r[e]);
      mean += off[e] / static_cast<double>(experts);
    }
    for (size_t e = 0; e < experts; ++e) {
      double moved = 0;
      for (size_t c = 0; c < hidden[i].size(); ++c) moved += change[e][c] * hidden[i][c];
      loss += (moved - off[e] + mean) * (moved - off[e] + mean);
    }
    for (double h : hidden[i]) trace += h * h;
  }
  for (const auto& row : change) {
    for (double d : row) loss += ridge * trace / static_cast<double>(row.size()) * d * d;
  }
  return loss;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_ROMA_ROMA_REFERENCE_H_
