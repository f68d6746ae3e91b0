#ifndef SLUICE_ROUTERS_COMMON_PIPELINE_MANIFOLD_H_
#define SLUICE_ROUTERS_COMMON_PIPELINE_MANIFOLD_H_
// How few dimensions a trajectory needs, and what leaves them: the measurements of "Low-dimensional
// execution manifolds" on snapshots of weights over training, or on any rows: router logits, hidden
// states of a layer (what sets the rank of a low-rank gate). They look and change nothing.
//
// A smooth trajectory that is sampled often always has few principal components; so has a random
// walk. Compare with RandomWalk, of the same step lengths; shuffling the snapshots changes nothing
// that is measured here and is no control.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/check.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace pipeline {
using Snapshots = std::vector<std::vector<double>>;  // [n][d], all of one d

namespace manifold_internal {
inline double Product(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
inline void AddTimes(double factor, const std::vector<double>& x, std::vector<double>& y) {
  for (size_t i = 0; i < x.size(); ++i) y[i] += factor * x[i];
}
// Eigenvalues of a symmetric matrix [n][n], descending, by Jacobi's rotations. O(n^3) a sweep, of
// which a dozen do.
inline std::vector<double> Eigenvalues(Snapshots a) {
  const size_t n = a.size();
  for (int sweep = 0; sweep < 60; ++sweep) {
    double off = 0;
    double all = 0;
    for (size_t p = 0; p < n; ++p) {
      for (size_t q = 0; q < n; ++q) {
        all += a[p][q] * a[p][q];
        if (p != q) off += a[p][q] * a[p][q];
      }
    }
    if (off <= 1e-30 * all) break;
    for (size_t p = 0; p + 1 < n; ++p) {
      for (size_t q = p + 1; q < n; ++q) {
        if (a[p][q] == 0) continue;
        const double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
        const double t = std::copysign(1, theta) / (std::abs(theta) + std::hypot(theta, 1));
        const double c = 1 / std::hypot(t, 1);
        const double s = t * c;
        for (size_t k = 0; k < n; ++k) {
          const double kp = a[k][p];
          const double kq = a[k][q];
          a[k][p] = c * kp - s * kq;
          a[k][q] = s * kp + c * kq;
        }
        for (size_t k = 0; k < n; ++k) {
          const double pk = a[p][k];
          const double qk = a[q][k];
          a[p][k] = c * pk - s * qk;
          a[q][k] = s * pk + c * qk;
        }
      }
    }
  }
  std::vector<double> values;
  for (size_t i = 0; i < n; ++i) values.push_back(std::max(0.0, a[i][i]));
  std::sort(values.begin(), values.end(), std::greater<>());
  return values;
}
}  // namespace manifold_internal

// Variances along the principal directions of the snapshots about their mean, descending, at most n
// of them, through the n x n Gram matrix. InvalidArgument: no snapshots, of different widths, or
// with numbers that are not finite. O(n^2 d + n^3).
inline absl::StatusOr<std::vector<double>> PrincipalVariances(const Snapshots& snapshots) {
  if (snapshots.empty()) return absl::InvalidArgumentError("no snapshots");
  const size_t n = snapshots.size();
  const size_t d = snapshots[0].size();
  std::vector<double> mean(d);
  for (const std::vector<double>& s : snapshots) {
    if (s.size() != d)
      return absl::InvalidArgumentError(
          absl::StrCat("snapshots of ", d, " and ", s.size(), " numbers; allowed: all alike"));
    for (size_t i = 0; i < d; ++i) {
      if (!std::isfinite(s[i]))
        return absl::InvalidArgumentError(absl::StrCat("a snapshot holds ", s[i]));
      mean[i] += s[i] / static_cast<double>(n);
    }
  }
  Snapshots about(snapshots);
  for (std::vector<double>& s : about) manifold_internal::AddTimes(-1, mean, s);
  Snapshots gram(n, std::vector<double>(n));
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = i; j < n; ++j) {
      gram[i][j] = manifold_internal::Product(about[i], about[j]) / static_cast<double>(n);
      gram[j][i] = gram[i][j];
    }
  }
  return manifold_internal::Eigenvalues(std::move(gram));
}

// The fewest directions that hold `share` of the variance (0.9: r90); 0 where there is none.
inline int64_t DirectionsFor(absl::Span<const double> variances, double share) {
  double all = 0;
  for (double v : variances) all += v;
  double held = 0;
  int64_t k = 0;
  // What rounding leaves of directions that are not there is not looked for.
  while (k < std::ssize(variances) && held < share * all - 1e-12 * all) held += variances[k++];
  return k;
}

// exp of the entropy of the normalised singular values: another number than r90, which public code
// names "effective rank". 0 where there is no variance.
inline double EffectiveRank(absl::Span<const double> variances) {
  double all = 0;
  for (double v : variances) all += std::sqrt(v);
  if (all == 0) return 0;
  double entropy = 0;
  for (double v : variances) {
    const double p = std::sqrt(v) / all;
    if (p > 0) entropy -= p * std::log(p);
  }
  return std::exp(entropy);
}

// Makes the vectors an orthonormal basis of what they span; those that add nothing go. O(k^2 d).
inline Snapshots Orthonormal(const Snapshots& vectors) {
  Snapshots basis;
  for (std::vector<double> v : vectors) {
    const double before = std::sqrt(manifold_internal::Product(v, v));
    for (int twice = 0; twice < 2; ++twice) {  // once leaves what rounding made of it
      for (const std::vector<double>& b : basis)
        manifold_internal::AddTimes(-manifold_internal::Product(v, b), b, v);
    }
    const double length = std::sqrt(manifold_internal::Product(v, v));
    if (!(length > 1e-10 * before)) continue;
    for (double& x : v) x /= length;
    basis.push_back(std::move(v));
  }
  return basis;
}
// |B B^T x| / |x| of an orthonormal basis: 0 to 1; 0 of x = 0.
inline double ShareInside(const Snapshots& basis, const std::vector<double>& x) {
  double inside = 0;
  for (const std::vector<double>& b : basis) {
    const double along = manifold_internal::Product(b, x);
    inside += along * along;
  }
  const double all = manifold_internal::Product(x, x);
  return all > 0 ? std::min(1.0, std::sqrt(inside / all)) : 0;
}
// Of k random directions of d, the basis that ShareInside is compared with; about sqrt(k / d).
inline Snapshots RandomBasis(int64_t k, int64_t d, uint64_t seed) {
  Snapshots vectors;
  for (int64_t i = 0; i < k; ++i) {
    std::vector<double>& v = vectors.emplace_back();
    for (int64_t x = 0; x < d; ++x)
      v.push_back(RandomNormal({seed, 1, 0, static_cast<uint64_t>(i), static_cast<uint64_t>(x)}));
  }
  return Orthonormal(vectors);
}
// The control of a trajectory: steps of the same lengths in random directions, added up.
inline Snapshots RandomWalk(const Snapshots& like, uint64_t seed) {
  Snapshots walk;
  if (like.empty()) return walk;
  walk.push_back(like[0]);
  for (size_t i = 1; i < like.size(); ++i) {
    std::vector<double> step = like[i];
    manifold_internal::AddTimes(-1, like[i - 1], step);
    const double length = std::sqrt(manifold_internal::Product(step, step));
    for (size_t x = 0; x < step.size(); ++x) step[x] = RandomNormal({seed, 2, 0, i, x});
    const double drawn = std::sqrt(manifold_internal::Product(step, step));
    walk.push_back(walk.back());
    if (drawn > 0) manifold_internal::AddTimes(length / drawn, step, walk.back());
  }
  return walk;
}

// Two steps of gradient descent in both orders from one place: where they end apart. Gradients come
// from whoever trains; four are asked for.
using Gradient = std::function<std::vector<double>(const std::vector<double>& at)>;
struct Commutator {
  std::vector<double> apart;  // end of (a, then b) - end of (b, then a)
  double defect = 0;  // |apart| / (|rate g_a| |rate g_b|), gradients at the start; 0 of none
};
inline Commutator Commute(const std::vector<double>& at, double rate, const Gradient& a,
                          const Gradient& b) {
  const auto stepped = [&](std::vector<double> from, const std::vector<double>& g) {
    manifold_internal::AddTimes(-rate, g, from);
    return from;
  };
  const std::vector<double> ga = a(at);
  const std::vector<double> gb = b(at);
  const std::vector<double> after_a = stepped(at, ga);
  const std::vector<double> after_b = stepped(at, gb);
  Commutator c;
  c.apart = stepped(after_a, b(after_a));
  manifold_internal::AddTimes(-1, stepped(after_b, a(after_b)), c.apart);
  const double sizes =
      rate * rate *
      std::sqrt(manifold_internal::Product(ga, ga) * manifold_internal::Product(gb, gb));
  if (sizes > 0) c.defect = std::sqrt(manifold_internal::Product(c.apart, c.apart)) / sizes;
  return c;
}

// Of one row of attention probabilities: its entropy in nats (log n where it is even), and what its
// k largest hold. Zeros add nothing.
inline double RowEntropy(absl::Span<const float> row) {
  double entropy = 0;
  for (float p : row) {
    if (p > 0) entropy -= static_cast<double>(p) * std::log(static_cast<double>(p));
  }
  return entropy;
}
inline double LargestMass(absl::Span<const float> row, int64_t k) {
  std::vector<float> sorted(row.begin(), row.end());
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  double held = 0;
  for (int64_t i = 0; i < std::min<int64_t>(k, std::ssize(sorted)); ++i)
    held += static_cast<double>(sorted[static_cast<size_t>(i)]);
  return held;
}
}  // namespace pipeline
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_COMMON_PIPELINE_MANIFOLD_H_
