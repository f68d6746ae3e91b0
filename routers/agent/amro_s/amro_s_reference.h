#ifndef SLUICE_ROUTERS_AGENT_AMRO_S_AMRO_S_REFERENCE_H_
#define SLUICE_ROUTERS_AGENT_AMRO_S_AMRO_S_REFERENCE_H_
// AMRO-S as printed: one outcome at a time, plain loops over tasks and edges, no batches, no
// layout. Agents are numbered inside their stage; tau[t][s][i][j] leads from agent i of stage s - 1
// (0: the source) to agent j of stage s.
#include <cmath>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
struct AmroSReference {
  using Matrix = std::vector<std::vector<double>>;
  double alpha = 1, beta = 2, rho = 0.02, q = 1;
  bool rho_by_intent = false;
  std::vector<std::vector<Matrix>> tau;

  AmroSReference(int tasks, const std::vector<int>& stages, double tau0) {
    for (int t = 0; t < tasks; ++t) {
      tau.emplace_back();
      for (size_t s = 0; s < stages.size(); ++s) {
        const int rows = s == 0 ? 1 : stages[s - 1];
        tau.back().emplace_back(rows, std::vector<double>(stages[s], tau0));
      }
    }
  }
  // p_ij for every j of stage s, from agent i. eta[t][j].
  std::vector<double> Transition(const std::vector<double>& w, int s, int i,
                                 const Matrix& eta) const {
    const size_t n = tau[0][s][i].size();
    std::vector<double> p(n);
    double sum = 0;
    for (size_t j = 0; j < n; ++j) {
      double fused = 0, heuristic = 0;
      for (size_t t = 0; t < w.size(); ++t) {
        fused += w[t] * tau[t][s][i][j];
        heuristic += w[t] * eta[t][j];
      }
      p[j] = std::pow(fused, alpha) * std::pow(heuristic, beta);
      sum += p[j];
    }
    for (double& x : p) x /= sum;
    return p;
  }
  // One answer along `path`; f: its system cost with epsilon added.
  void Update(const std::vector<double>& w, const std::vector<int>& path, bool gate, double f) {
    if (!gate) return;
    for (size_t t = 0; t < w.size(); ++t) {
      for (size_t s = 0; s < path.size(); ++s) {
        double& edge = tau[t][s][s == 0 ? 0 : path[s - 1]][path[s]];
        edge = (1 - rho * (rho_by_intent ? w[t] : 1.0)) * edge + w[t] * q / f;
      }
    }
  }
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_AMRO_S_AMRO_S_REFERENCE_H_
