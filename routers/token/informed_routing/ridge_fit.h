#ifndef SLUICE_ROUTERS_TOKEN_INFORMED_ROUTING_RIDGE_FIT_H_
#define SLUICE_ROUTERS_TOKEN_INFORMED_ROUTING_RIDGE_FIT_H_
// Calibrates a forecaster without gradient descent: ridge regression of a unit's output on its
// input, then the best map of the wanted rank (reduced-rank regression). Double precision; not a
// hot path.
#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "sluice/routers/common/cholesky.h"
#include "sluice/routers/token/informed_routing/informed_routing.h"

SLUICE_BEGIN_NAMESPACE
namespace token {
class RidgeFit {
 public:
  explicit RidgeFit(int64_t dim) : dim_(dim), xx_(dim * dim), xy_(dim * dim), x_(dim), y_(dim) {}
  int64_t rows() const { return rows_; }

  // One token: input h [dim] of the unit and its output u [dim]. O(dim^2).
  void Add(const float* h, const float* u) {
    ++rows_;
    for (int64_t i = 0; i < dim_; ++i) {
      const double v = static_cast<double>(h[i]);
      x_[At(i)] += v;
      y_[At(i)] += static_cast<double>(u[i]);
      double* xx = &xx_[At(i * dim_)];
      double* xy = &xy_[At(i * dim_)];
      for (int64_t j = 0; j < dim_; ++j) {
        xx[j] += v * static_cast<double>(h[j]);
        xy[j] += v * static_cast<double>(u[j]);
      }
    }
  }

  // The linear forecaster of this rank that minimises sum |u - f(h)|^2 + ridge * mean(|h|^2) *
  // |W|^2, biases exact. Rank 0 is the skip. Fewer tokens than 2, or inputs that do not vary with
  // ridge 0, are errors. O(dim^3).
  absl::StatusOr<FeatureForecaster> Solve(int64_t rank, double ridge = 1e-3) const {
    if (rank < 0 || rank > dim_)
      return absl::InvalidArgumentError(absl::StrCat("rank ", rank, " is outside [0, ", dim_, "]"));
    if (rows_ < 2)
      return absl::FailedPreconditionError(
          absl::StrCat("a fit of ", rows_, " tokens; give at least 2"));
    const double n = static_cast<double>(rows_);
    std::vector<double> a(xx_), w(xy_);  // centred: a = X'X, w = X'Y, then the solution W [in, out]
    double trace = 0;
    for (int64_t i = 0; i < dim_; ++i) {
      for (int64_t j = 0; j < dim_; ++j) {
        a[At(i * dim_ + j)] -= x_[At(i)] * x_[At(j)] / n;
        w[At(i * dim_ + j)] -= x_[At(i)] * y_[At(j)] / n;
      }
      trace += a[At(i * dim_ + i)];
    }
    const std::vector<double> covariance = a;
    for (int64_t i = 0; i < dim_; ++i)
      a[At(i * dim_ + i)] += ridge * trace / static_cast<double>(dim_);
    if (!CholeskySolve(dim_, dim_, a, w))
      return absl::FailedPreconditionError("the inputs do not span their space; use ridge > 0");
    const std::vector<double> v = TopDirections(covariance, w, rank);  // [dim, rank]

    FeatureForecaster f;
    f.silu = false;
    f.down = {dim_, rank, std::vector<float>(At(rank * dim_)), std::vector<float>(At(rank))};
    f.up = {rank, dim_, std::vector<float>(At(dim_ * rank)), std::vector<float>(At(dim_))};
    for (int64_t r = 0; r < rank; ++r) {
      double mean = 0;
      for (int64_t i = 0; i < dim_; ++i) {
        double s = 0;
        for (int64_t o = 0; o < dim_; ++o) s += w[At(i * dim_ + o)] * v[At(o * rank + r)];
        f.down.weight[At(r * dim_ + i)] = static_cast<float>(s);
        mean += s * x_[At(i)] / n;
      }
      f.down.bias[At(r)] =
          static_cast<float>(-mean);  // centred inside, so that no large terms cancel outside
      for (int64_t o = 0; o < dim_; ++o)
        f.up.weight[At(o * rank + r)] = static_cast<float>(v[At(o * rank + r)]);
    }
    for (int64_t o = 0; o < dim_; ++o) f.up.bias[At(o)] = static_cast<float>(y_[At(o)] / n);
    return f;
  }

 private:
  static size_t At(int64_t i) { return static_cast<size_t>(i); }
  // Orthonormal [dim, rank]: the directions that carry most of the fitted output, W' C W.
  // Orthogonal iteration.
  std::vector<double> TopDirections(const std::vector<double>& c, const std::vector<double>& w,
                                    int64_t rank) const {
    const int64_t d = dim_;
    const auto multiply = [&](const std::vector<double>& m, const std::vector<double>& x,
                              int64_t cols, bool transpose) {
      std::vector<double> y(At(d * cols));
      for (int64_t i = 0; i < d; ++i) {
        for (int64_t k = 0; k < d; ++k) {
          const double f = transpose ? m[At(k * d + i)] : m[At(i * d + k)];
          for (int64_t j = 0; j < cols; ++j) y[At(i * cols + j)] += f * x[At(k * cols + j)];
        }
      }
      return y;
    };
    std::vector<double> v(At(d * rank));
    for (int64_t r = 0; r < rank; ++r) v[At(r * rank + r)] = 1;
    if (rank == 0 || rank == d) return v;
    const std::vector<double> m = multiply(w, multiply(c, w, d, false), d, true);
    uint64_t state = 1;
    for (double& x : v) {  // any start that is not orthogonal to the answer
      state = state * 6364136223846793005u + 1442695040888963407u;
      x += 1e-2 * static_cast<double>(state >> 40) * 0x1p-24;
    }
    for (int turn = 0; turn < 100; ++turn) {
      v = multiply(m, v, rank, false);
      for (int64_t j = 0; j < rank; ++j) {  // modified Gram-Schmidt
        for (int64_t k = 0; k <= j; ++k) {
          double dot = 0;
          for (int64_t i = 0; i < d; ++i) dot += v[At(i * rank + k)] * v[At(i * rank + j)];
          const double norm = std::sqrt(dot);
          for (int64_t i = 0; i < d; ++i) {
            double& x = v[At(i * rank + j)];
            x = k < j ? x - dot * v[At(i * rank + k)] : norm > 0 ? x / norm : 0;
          }
        }
      }
    }
    return v;
  }

  int64_t dim_, rows_ = 0;
  std::vector<double> xx_, xy_, x_, y_;
};
}  // namespace token
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_TOKEN_INFORMED_ROUTING_RIDGE_FIT_H_
