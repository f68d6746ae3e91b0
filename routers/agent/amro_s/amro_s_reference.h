#ifndef SLUICE_ROUTERS_AGENT_AMRO_S_AMRO_S_REFERENCE_H_
#define SLUICE_ROUTERS_AGENT_AMRO_S_AMRO_S_REFERENCE_H_
// AMRO-S as printed: one outcome at a time, plain loops over tasks and edges, no batches, no
// layout. Agents are numbered inside their stage; tau[t][s][i][j] leads from agent i of stage s - 1
// (0: the source) to agent j of stage s.
#include <algorithm>
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

// The relative pheromone (ours) as relative.h states it: what was seen of each edge, and tau worked
// out from it by its definition whenever it is asked for.
struct RelativeReference {
  struct Edge {
    double n = 0, sum = 0, squares = 0, lately_n = 0, lately_sum = 0;
    double Mean() const { return n > 0 ? sum / n : 0; }
  };
  using Row = std::vector<Edge>;
  double sharpen = 0.03, share = 15, alarm = 2.5, memory = 1e9, prior = 4;
  std::vector<std::vector<std::vector<Row>>> edges;  // [task][stage][agent before][agent]
  // What the configuration says of an agent over its stage's mean; stages that are missing: the
  // same of all.
  std::vector<std::vector<std::vector<double>>> configured;  // [task][stage][agent]

  RelativeReference(int tasks, const std::vector<int>& stages) {
    for (int t = 0; t < tasks; ++t) {
      edges.emplace_back();
      for (size_t s = 0; s < stages.size(); ++s)
        edges.back().emplace_back(s == 0 ? 1 : stages[s - 1], Row(stages[s]));
    }
  }
  // One answer along `path`, worth `u`.
  void Update(const std::vector<double>& w, const std::vector<int>& path, double u) {
    for (size_t t = 0; t < w.size(); ++t) {
      for (size_t s = 0; w[t] > 0 && s < path.size(); ++s) {
        Row& row = edges[t][s][s == 0 ? 0 : path[s - 1]];
        Edge& e = row[path[s]];
        const double old = std::exp(-w[t] / memory);
        const double before = std::exp(-w[t] / 50);
        e = {e.n * old + w[t], e.sum * old + w[t] * u, e.squares * old + w[t] * u * u,
             e.lately_n * before + w[t], e.lately_sum * before + w[t] * u};
        const double variance = std::max(e.squares / e.n - e.Mean() * e.Mean(), 1e-6);
        const double lately = e.lately_sum / e.lately_n;
        const double evidence = e.lately_n * std::pow(e.Mean() - lately, 2) / (2 * variance);
        if (lately >= e.Mean() || evidence <= alarm + std::log(row.size())) continue;
        const Edge now = {e.lately_n, e.lately_sum, e.squares * e.lately_n / e.n, e.lately_n,
                          e.lately_sum};
        for (Row& other : edges[t][s]) other[path[s]] = Edge{};
        std::fill(row.begin(), row.end(), Edge{});
        row[path[s]] = now;
      }
    }
  }
  static double MeanOf(const Row& row) {
    double n = 0, sum = 0;
    for (const Edge& e : row) {
      n += e.n;
      sum += e.sum;
    }
    return n > 0 ? sum / n : 0;
  }
  // What agent j of a stage gained over its rows' means in all tasks but one, or in one task's
  // rows but one; and in how many outcomes.
  struct Gain {
    double n = 0, gained = 0;
    void Add(const Row& row, int j) {
      n += row[j].n;
      gained += row[j].sum - row[j].n * MeanOf(row);
    }
  };
  std::vector<double> Tau(size_t t, size_t s, size_t i) const {
    const Row& row = edges[t][s][i];
    std::vector<double> known, advantage;
    for (int j = 0; j < static_cast<int>(row.size()); ++j) {
      Gain tasks, rows, own;
      for (size_t u = 0; u < edges.size(); ++u) {
        for (size_t k = 0; k < edges[u][s].size(); ++k) {
          if (u != t) tasks.Add(edges[u][s][k], j);
          if (u == t && k != i) rows.Add(edges[u][s][k], j);
        }
      }
      own.Add(row, j);
      const bool told = t < configured.size() && s < configured[t].size();
      const double said = told ? prior * configured[t][s][j] : 0;
      const double from_tasks = (said + tasks.gained) / (prior + tasks.n);
      const double from_rows = (share * from_tasks + rows.gained) / (share + rows.n);
      advantage.push_back((share * from_rows + own.gained) / (share + own.n));
      const double told_n = tasks.n + (told ? prior : 0);
      known.push_back(own.n + std::min(share, rows.n + share * told_n / (share + told_n)));
    }
    double n = 0, squares = 1, degrees = 4;
    for (const Edge& e : row) {
      n += e.n;
      if (e.n > 0) squares += std::max(0.0, e.squares - e.n * e.Mean() * e.Mean());
      degrees += std::max(0.0, e.n - 1);
    }
    size_t best = row.size();
    for (size_t j = 0; j < row.size(); ++j) {
      if (known[j] > 0 && (best == row.size() || advantage[j] > advantage[best])) best = j;
    }
    std::vector<double> tau;
    for (size_t j = 0; j < row.size(); ++j) {
      double z = 0;
      if (known[j] > 0) {
        z = std::pow(advantage[best] - advantage[j], 2) /
            (2 * squares / degrees * (1 / known[j] + 1 / known[best]));
      }
      tau.push_back(std::exp(-(1 + sharpen * n / row.size()) * z));
    }
    return tau;
  }
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_AMRO_S_AMRO_S_REFERENCE_H_
