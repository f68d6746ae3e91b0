#ifndef SLUICE_ROUTERS_EXPERT_ROMA_REFIT_H_
#define SLUICE_ROUTERS_EXPERT_ROMA_REFIT_H_
// A gate refitted without gradient descent, so that samples route as those near them that the model
// answers correctly: the linear part of RoMA (arXiv 2511.07419). Double precision; offline.
//
//   r_i = softmax(W h_i), of the gate as it is now; neighbours' r_j, of the gate as it was
//   target_i = (1 - lambda) r_i + lambda sum_j w_ij r_j, j the k nearest correct samples but i
//   W += argmin_D sum_i |D h_i - (log target_i - log r_i)|^2 + ridge mean|h|^2 |D|^2
//
// What the paper trains is a loss with the task's own in it, through every layer; none of its gains
// is claimed for this. A host must hold the refitted gate against the old one on answers of its
// own. The public re-implementation takes r_i from a file, so that its term has no gradient, and
// lets a sample be its own neighbour.
#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/check.h"
#include "sluice/api/tensor_view.h"
#include "sluice/routers/common/linear_fit.h"
#include "sluice/routers/expert/roma/neighbours.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
struct AlignedSamples {
  MatrixView<const float> hidden;     // [n, dim], what the gate reads at the last token
  MatrixView<const float> embedding;  // [n, width], of the sample's text
  absl::Span<const uint8_t> correct;  // [n], whether the model answers it
};
struct AlignOptions {
  int64_t k = 3;
  double sigma = 0.4;
  double lambda = 0.8;
  double ridge = 1e-3;
  int64_t turns = 1;  // refits, each from the gate of the one before
};

// Neighbours of every sample, in one list; row_ptr as in an assignment.
struct NeighbourGraph {
  std::vector<int64_t> row_ptr = {0};
  std::vector<Neighbour> edge;

  // O(n^2 width).
  static NeighbourGraph Of(const AlignedSamples& s, int64_t k, double sigma) {
    NeighbourGraph g;
    std::vector<Neighbour> found(static_cast<size_t>(std::min(k, s.embedding.rows)));
    for (int64_t i = 0; i < s.embedding.rows; ++i) {
      const auto allowed = [&](int64_t j) { return j != i && s.correct[j] != 0; };
      const int64_t n =
          Nearest(s.embedding, s.embedding.row(i), sigma, allowed, absl::MakeSpan(found));
      g.edge.insert(g.edge.end(), found.begin(), found.begin() + n);
      g.row_ptr.push_back(std::ssize(g.edge));
    }
    return g;
  }
};

// softmax(W h) of every sample, [n, experts].
inline std::vector<double> Routes(const Linear& gate, MatrixView<const float> hidden) {
  std::vector<double> r(static_cast<size_t>(hidden.rows * gate.out));
  for (int64_t i = 0; i < hidden.rows; ++i) {
    double* row = &r[i * gate.out];
    double most = -INFINITY;
    for (int64_t e = 0; e < gate.out; ++e) {
      row[e] = static_cast<double>(gate.bias[e]);
      for (int64_t c = 0; c < gate.in; ++c)
        row[e] += static_cast<double>(gate.weight[e * gate.in + c]) *
                  static_cast<double>(hidden.row(i)[c]);
      most = std::max(most, row[e]);
    }
    double sum = 0;
    for (int64_t e = 0; e < gate.out; ++e) {
      row[e] = std::exp(row[e] - most);
      sum += row[e];
    }
    for (int64_t e = 0; e < gate.out; ++e) row[e] /= sum;
  }
  return r;
}

// How far routes lie from those of neighbours: mean over the samples that have some of
// sum_j w_ij |r_i - r_j|^2, r [n, experts] and others [n, experts]. 0 of none. O(edges experts).
inline double Misalignment(const NeighbourGraph& g, absl::Span<const double> r,
                           absl::Span<const double> others, int64_t experts) {
  double sum = 0;
  int64_t with = 0;
  for (int64_t i = 0; i + 1 < std::ssize(g.row_ptr); ++i) {
    with += g.row_ptr[i] < g.row_ptr[i + 1];
    for (int64_t e = g.row_ptr[i]; e < g.row_ptr[i + 1]; ++e) {
      for (int64_t u = 0; u < experts; ++u) {
        const double off = r[i * experts + u] - others[g.edge[e].sample * experts + u];
        sum += g.edge[e].weight * off * off;
      }
    }
  }
  return with > 0 ? sum / static_cast<double>(with) : 0;
}

class GateRefit {
 public:
  // The refitted gate; its bias stays. No sample with a neighbour, or lambda = 0: the gate as it
  // was, bit for bit. Errors: sizes that do not fit each other, settings out of range, inputs that
  // are not finite or do not span their space without a ridge.
  // O(n^2 width + turns (n dim (dim + experts) + dim^3)).
  static absl::StatusOr<Linear> Run(const Linear& gate, const AlignedSamples& s,
                                    const AlignOptions& o) {
    if (absl::Status status = Check(gate, s, o); !status.ok()) return status;
    const NeighbourGraph graph = NeighbourGraph::Of(s, o.k, o.sigma);
    if (graph.edge.empty() || o.lambda == 0) return gate;
    const std::vector<double> before = Routes(gate, s.hidden);
    Linear now = gate;
    for (int64_t turn = 0; turn < o.turns; ++turn) {
      if (absl::Status status = Turn(s, o, graph, before, now); !status.ok()) return status;
    }
    return now;
  }

 private:
  static absl::Status Check(const Linear& gate, const AlignedSamples& s, const AlignOptions& o) {
    if (s.hidden.cols != gate.in || s.embedding.rows != s.hidden.rows ||
        std::ssize(s.correct) != s.hidden.rows)
      return absl::InvalidArgumentError(absl::StrCat(
          "states [", s.hidden.rows, ", ", s.hidden.cols, "], ", s.embedding.rows,
          " embeddings and ", s.correct.size(), " answers for a gate of width ", gate.in));
    if (o.k < 1 || !(o.sigma > 0) || !(o.lambda >= 0 && o.lambda <= 1) || !(o.ridge >= 0) ||
        o.turns < 1)
      return absl::InvalidArgumentError(absl::StrCat(
          "k ", o.k, ", sigma ", o.sigma, ", lambda ", o.lambda, ", ridge ", o.ridge, ", turns ",
          o.turns, "; allowed k and turns from 1, sigma above 0, lambda 0 to 1, ridge from 0"));
    for (int64_t i = 0; i < s.hidden.rows; ++i) {
      for (int64_t c = 0; c < s.hidden.cols; ++c) {
        if (!std::isfinite(s.hidden.row(i)[c]))
          return absl::InvalidArgumentError(absl::StrCat("sample ", i, " is not finite"));
      }
    }
    return absl::OkStatus();
  }

  // One least-squares step of `gate`.
  static absl::Status Turn(const AlignedSamples& s, const AlignOptions& o, const NeighbourGraph& g,
                           const std::vector<double>& before, Linear& gate) {
    const int64_t experts = gate.out;
    const std::vector<double> r = Routes(gate, s.hidden);
    std::vector<double> off(static_cast<size_t>(experts));
    LinearFit step(gate.in, experts, /*with_bias=*/false);
    for (int64_t i = 0; i < s.hidden.rows; ++i) {
      if (g.row_ptr[i] == g.row_ptr[i + 1]) continue;
      Offset(o, g, i, &r[i * experts], before, off);
      step.Add(s.hidden.row(i), off.data());
    }
    SLUICE_ASSIGN_OR_RETURN(const Linear change, step.Solve(o.ridge));
    for (size_t i = 0; i < gate.weight.size(); ++i) gate.weight[i] += change.weight[i];
    return absl::OkStatus();
  }

  // log target - log r of sample i, moved to mean 0: a softmax sees no constant.
  static void Offset(const AlignOptions& o, const NeighbourGraph& g, int64_t i, const double* r,
                     const std::vector<double>& before, std::vector<double>& off) {
    constexpr double kLeast = 1e-12;
    const int64_t experts = std::ssize(off);
    double mean = 0;
    for (int64_t e = 0; e < experts; ++e) {
      double target = (1 - o.lambda) * r[e];
      for (int64_t n = g.row_ptr[i]; n < g.row_ptr[i + 1]; ++n)
        target += o.lambda * g.edge[n].weight * before[g.edge[n].sample * experts + e];
      off[e] = std::log(std::max(target, kLeast)) - std::log(std::max(r[e], kLeast));
      mean += off[e] / static_cast<double>(experts);
    }
    for (double& x : off) x -= mean;
  }
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_ROMA_REFIT_H_
