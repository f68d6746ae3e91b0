#ifndef SLUICE_ROUTERS_COMMON_LINEAR_FIT_H_
#define SLUICE_ROUTERS_COMMON_LINEAR_FIT_H_
// A linear layer fitted to what it should have given, by ridge regression. Double precision;
// offline.
#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "sluice/routers/common/cholesky.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
class LinearFit {
 public:
  // `with_bias`: the inputs and the outputs are centred first, and the bias is exact; else it is 0.
  LinearFit(int64_t in, int64_t out, bool with_bias = true)
      : in_(in),
        out_(out),
        with_bias_(with_bias),
        xx_(static_cast<size_t>(in * in)),
        xy_(static_cast<size_t>(in * out)),
        x_(static_cast<size_t>(in)),
        y_(static_cast<size_t>(out)) {}
  int64_t rows() const { return rows_; }

  // One sample: x [in] and what should come of it, y [out]; one that is not finite is an error of
  // Solve. O(in (in + out)).
  template <class Y>
  void Add(const float* x, const Y* y) {
    ++rows_;
    for (int64_t o = 0; o < out_; ++o) y_[o] += static_cast<double>(y[o]);
    for (int64_t i = 0; i < in_; ++i) {
      const auto v = static_cast<double>(x[i]);
      x_[i] += v;
      for (int64_t j = 0; j <= i; ++j) xx_[i * in_ + j] += v * static_cast<double>(x[j]);
      for (int64_t o = 0; o < out_; ++o) xy_[i * out_ + o] += v * static_cast<double>(y[o]);
    }
  }

  // The layer that minimises sum |y - W x - b|^2 + ridge mean|x|^2 |W|^2, where mean|x|^2 is the
  // mean over the inputs of their (centred) sum of squares. FailedPrecondition: fewer
  // samples than two (one without a bias), inputs that do not vary or span their space with ridge
  // 0, samples not finite. O(in^2 (in + out)).
  absl::StatusOr<Linear> Solve(double ridge = 1e-3) const {
    const int64_t least = with_bias_ ? 2 : 1;
    if (rows_ < least || !(ridge >= 0))
      return absl::FailedPreconditionError(absl::StrCat("a fit of ", rows_, " samples, ridge ",
                                                        ridge, "; allowed: from ", least,
                                                        ", and from 0"));
    const double n = with_bias_ ? static_cast<double>(rows_) : INFINITY;  // nothing is subtracted
    std::vector<double> a(xx_);  // below the diagonal, which is all that is read
    std::vector<double> w(xy_);
    double trace = 0;
    for (int64_t i = 0; i < in_; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        a[i * in_ + j] -= x_[i] * x_[j] / n;
      }
      for (int64_t o = 0; o < out_; ++o) w[i * out_ + o] -= x_[i] * y_[o] / n;
      trace += a[i * in_ + i];
    }
    for (int64_t i = 0; i < in_; ++i) a[i * in_ + i] += ridge * trace / static_cast<double>(in_);
    if (!CholeskySolve(in_, out_, a, w))
      return absl::FailedPreconditionError(
          "the inputs are not finite or do not span their space; use ridge > 0");

    Linear l{in_, out_, std::vector<float>(w.size()), std::vector<float>(y_.size())};
    for (int64_t o = 0; o < out_; ++o) {
      double bias = y_[o] / n;
      for (int64_t i = 0; i < in_; ++i) {
        l.weight[o * in_ + i] = static_cast<float>(w[i * out_ + o]);
        bias -= w[i * out_ + o] * x_[i] / n;
      }
      l.bias[o] = static_cast<float>(bias);
      if (!std::isfinite(bias))
        return absl::FailedPreconditionError(absl::StrCat("output ", o, " is not finite"));
    }
    return l;
  }

 private:
  int64_t in_, out_;
  bool with_bias_;
  int64_t rows_ = 0;
  std::vector<double> xx_;  // [in, in], below the diagonal
  std::vector<double> xy_;  // [in, out]
  std::vector<double> x_, y_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_COMMON_LINEAR_FIT_H_
