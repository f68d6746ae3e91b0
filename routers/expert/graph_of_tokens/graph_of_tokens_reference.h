#ifndef SLUICE_ROUTERS_EXPERT_GRAPH_OF_TOKENS_GRAPH_OF_TOKENS_REFERENCE_H_
#define SLUICE_ROUTERS_EXPERT_GRAPH_OF_TOKENS_GRAPH_OF_TOKENS_REFERENCE_H_
// The specification: plain loops in double precision, over one sequence.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
struct TokenGraph {
  using Matrix = std::vector<std::vector<double>>;

  static Matrix Softmax(Matrix z) {
    for (std::vector<double>& row : z) {
      const double most = *std::max_element(row.begin(), row.end());
      double sum = 0;
      for (double& v : row) {
        v = std::exp(v - most);
        sum += v;
      }
      for (double& v : row) v /= sum;
    }
    return z;
  }

  // Keeps the best `neighbours` (0: all) of each row, of the earlier tokens alone where causal, and
  // divides by the sum.
  static Matrix Limit(Matrix s, size_t neighbours, bool causal) {
    for (size_t i = 0; i < s.size(); ++i) {
      const std::vector<double> row = s[i];
      double sum = 0;
      for (size_t j = 0; j < row.size(); ++j) {
        size_t ahead = 0;
        for (size_t o = 0; o < row.size(); ++o) {
          if (causal && o > i) continue;
          ahead += row[o] > row[j] || (row[o] == row[j] && o < j);
        }
        if ((causal && j > i) || (neighbours > 0 && ahead >= neighbours)) s[i][j] = 0;
        sum += s[i][j];
      }
      for (double& v : s[i]) v /= sum;
    }
    return s;
  }
  static Matrix Similarity(const Matrix& x, double tau) {
    Matrix s(x.size(), std::vector<double>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      for (size_t j = 0; j < x.size(); ++j) {
        for (size_t c = 0; c < x[i].size(); ++c) s[i][j] += x[i][c] * x[j][c] / tau;
      }
    }
    return Softmax(s);
  }

  static Matrix Mix(const Matrix& r, const Matrix& s, double alpha) {
    Matrix mixed = r;
    for (size_t i = 0; i < r.size(); ++i) {
      for (size_t u = 0; u < r[i].size(); ++u) {
        double sum = 0;
        for (size_t j = 0; j < r.size(); ++j) sum += s[i][j] * r[j][u];
        mixed[i][u] = (1 - alpha) * r[i][u] + alpha * sum;
      }
    }
    return mixed;
  }

  // Weight of every expert, 0 of those that are not among the token's k.
  static Matrix Choose(Matrix r, size_t k) {
    for (std::vector<double>& row : r) {
      const std::vector<double> score = row;
      double sum = 0;
      for (size_t u = 0; u < score.size(); ++u) {
        size_t ahead = 0;
        for (size_t v = 0; v < score.size(); ++v)
          ahead += score[v] > score[u] || (score[v] == score[u] && v < u);
        if (ahead >= k) row[u] = 0;
        sum += row[u];
      }
      for (double& v : row) v /= sum;
    }
    return r;
  }
};
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_GRAPH_OF_TOKENS_GRAPH_OF_TOKENS_REFERENCE_H_
