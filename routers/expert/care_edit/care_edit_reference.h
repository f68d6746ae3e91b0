#ifndef SLUICE_ROUTERS_EXPERT_CARE_EDIT_CARE_EDIT_REFERENCE_H_
#define SLUICE_ROUTERS_EXPERT_CARE_EDIT_CARE_EDIT_REFERENCE_H_
// The specification: plain loops in double precision, over one step of one picture.
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <vector>

namespace sluice::reference {
using CareRows = std::vector<std::vector<double>>;  // a matrix, row by row

struct CareEditNet {
  CareRows key, condition, step, task, mlp, logits;  // step, task: a row each
  std::vector<double> key_bias, condition_bias, mlp_bias, logits_bias, gamma;
};

inline std::vector<double> CareLinear(const CareRows& w, const std::vector<double>& b,
                                      const std::vector<double>& x) {
  std::vector<double> y = b;
  for (size_t o = 0; o < w.size(); ++o) {
    for (size_t i = 0; i < x.size(); ++i) y[o] += w[o][i] * x[i];
  }
  return y;
}

// What the router thinks of every expert for one token.
inline std::vector<double> CareLogits(const CareEditNet& net, const std::vector<double>& token,
                                      const std::vector<double>& conditions, size_t step,
                                      size_t task) {
  std::vector<double> x = CareLinear(net.key, net.key_bias, token);
  const std::vector<double> c = CareLinear(net.condition, net.condition_bias, conditions);
  for (size_t i = 0; i < c.size(); ++i) x.push_back(c[i] + net.step[step][i] + net.task[task][i]);
  std::vector<double> hidden = CareLinear(net.mlp, net.mlp_bias, x);
  for (double& h : hidden) h = h > 0 ? h : 0;
  return CareLinear(net.logits, net.logits_bias, hidden);
}

// Logits z [tokens][experts] of a picture `grid` tokens wide, each with its neighbours' mean.
inline CareRows CareSmooth(const CareRows& z, size_t grid, double smooth) {
  CareRows out = z;
  const auto rows = static_cast<int>(z.size() / grid);
  const auto cols = static_cast<int>(grid);
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < cols; ++c) {
      const size_t at = static_cast<size_t>(r * cols + c);
      for (size_t e = 0; e < z[at].size(); ++e) {
        double sum = 0;
        double n = 0;
        for (int y = 0; y < rows; ++y) {
          for (int x = 0; x < cols; ++x) {
            if (std::abs(y - r) + std::abs(x - c) != 1) continue;
            sum += z[static_cast<size_t>(y * cols + x)][e];
            n += 1;
          }
        }
        if (n > 0) out[at][e] = (1 - smooth) * z[at][e] + smooth * sum / n;
      }
    }
  }
  return out;
}

// Weight of every expert for one token, from its logits as they stand after memory.
inline std::vector<double> CareWeights(const std::vector<double>& z, size_t k, double temperature,
                                       double gamma, size_t base, bool force, size_t shared) {
  std::vector<double> w(z.size());
  double sum = 0;
  for (size_t e = 0; e < z.size(); ++e) {
    size_t ahead = 0;
    for (size_t o = 0; o < z.size(); ++o) {
      const bool first = force && o == shared && e != shared;
      const bool mine = force && e == shared;
      ahead += first || (!mine && o != e && (z[o] > z[e] || (z[o] == z[e] && o < e)));
    }
    if (ahead < k) w[e] = std::exp(z[e] / temperature);
    sum += w[e];
  }
  for (double& v : w) v *= gamma / sum;
  w[base] += 1 - gamma;
  return w;
}
}  // namespace sluice::reference
#endif  // SLUICE_ROUTERS_EXPERT_CARE_EDIT_CARE_EDIT_REFERENCE_H_
