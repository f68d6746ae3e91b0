#ifndef SLUICE_POLICIES_EXPERIMENT_SEQUENTIAL_H_
#define SLUICE_POLICIES_EXPERIMENT_SEQUENTIAL_H_
// Is B better than A, asked as often as one likes: always-valid p-values (mSPRT, Johari et al.,
// arXiv 1512.04922), asymptotic confidence sequences (Waudby-Smith et al., arXiv 2103.06476),
// variance reduction by what was known before (CUPED, Deng et al. 2013), and the check that units
// were split as planned.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/types/span.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// Running mean and variance of a metric y, and its covariance with a covariate x measured before
// assignment (0: none). Numbers that are not finite are left out and counted.
class Moments {
 public:
  void Add(double y, double x = 0) {
    if (!std::isfinite(y) || !std::isfinite(x)) {
      ++skipped_;
      return;
    }
    ++n_;
    const double dy = y - mean_y_, dx = x - mean_x_, n = static_cast<double>(n_);
    mean_y_ += dy / n;
    mean_x_ += dx / n;
    yy_ += dy * (y - mean_y_);
    xx_ += dx * (x - mean_x_);
    xy_ += dx * (y - mean_y_);
  }
  int64_t count() const { return n_; }
  int64_t skipped() const { return skipped_; }
  double mean() const { return mean_y_; }
  double mean_x() const { return mean_x_; }
  double variance() const { return n_ > 1 ? yy_ / static_cast<double>(n_ - 1) : 0; }
  double variance_x() const { return n_ > 1 ? xx_ / static_cast<double>(n_ - 1) : 0; }
  double covariance() const { return n_ > 1 ? xy_ / static_cast<double>(n_ - 1) : 0; }

 private:
  int64_t n_ = 0, skipped_ = 0;
  double mean_y_ = 0, mean_x_ = 0, yy_ = 0, xx_ = 0, xy_ = 0;
};

struct Difference {
  double value = 0, variance = 0;  // of the difference of means B - A
  int64_t units = 0;
};
// Y - theta (X - mean X) with one theta for both arms; equal to the plain difference when x never
// varies. theta is fitted on the same units, which costs a bias of order 1 / units.
inline Difference DifferenceOfMeans(const Moments& a, const Moments& b) {
  Difference d;
  d.units = a.count() + b.count();
  if (a.count() < 2 || b.count() < 2) return d;
  const double na = static_cast<double>(a.count()), nb = static_cast<double>(b.count());
  const double xx = a.variance_x() * (na - 1) + b.variance_x() * (nb - 1);
  const double theta = xx > 0 ? (a.covariance() * (na - 1) + b.covariance() * (nb - 1)) / xx : 0;
  auto variance = [theta](const Moments& m) {
    return std::max(0.0,
                    m.variance() - 2 * theta * m.covariance() + theta * theta * m.variance_x());
  };
  d.value = (b.mean() - a.mean()) - theta * (b.mean_x() - a.mean_x());
  d.variance = variance(a) / na + variance(b) / nb;
  return d;
}

// A metric whose outcomes come in clusters: a unit (user, session) has many, and they are alike.
// Means are over outcomes, variances over units, so ten thousand outcomes of ten users are ten
// observations.
class ClusteredMetric {
 public:
  // One more outcome of a unit that had `n` of sum `y`; `x` is what was known of the unit before
  // (the same each time).
  void Add(double y, double n, double x, double value) {
    if (n == 0) {
      units_ += 1;
      x_ += x;
      xx_ += x * x;
    }
    yy_ += value * (value + 2 * y);
    nn_ += 2 * n + 1;
    yn_ += y + value * (n + 1);
    xy_ += x * value;
    xn_ += x;
    y_ += value;
    n_ += 1;
  }
  int64_t units() const { return static_cast<int64_t>(units_); }
  int64_t outcomes() const { return static_cast<int64_t>(n_); }
  double mean() const { return n_ > 0 ? y_ / n_ : 0; }
  double mean_x() const { return units_ > 0 ? x_ / units_ : 0; }
  // Of a unit's influence on the mean, (y - mean * n) / (outcomes of a unit): the delta method for
  // a ratio.
  double variance() const {
    const double r = mean(), per_unit = n_ / units_;
    return units_ > 1 ? std::max(0.0, (yy_ - 2 * r * yn_ + r * r * nn_) /
                                          (per_unit * per_unit * (units_ - 1)))
                      : 0;
  }
  double covariance() const {
    return units_ > 1 ? (xy_ - mean() * xn_) / (n_ / units_ * (units_ - 1)) : 0;
  }
  double variance_x() const {
    return units_ > 1 ? std::max(0.0, (xx_ - x_ * x_ / units_) / (units_ - 1)) : 0;
  }
  template <class V>
  void VisitSums(V&& v) {
    for (double* s : {&units_, &x_, &xx_, &y_, &n_, &yy_, &nn_, &yn_, &xy_, &xn_}) v(*s);
  }

 private:
  double units_ = 0, x_ = 0, xx_ = 0, y_ = 0, n_ = 0, yy_ = 0, nn_ = 0, yn_ = 0, xy_ = 0, xn_ = 0;
};
// B - A, adjusted by what was known before (CUPED) as DifferenceOfMeans does; the same when every
// unit has one outcome. kept: share of the variance that the adjustment leaves.
inline Difference DifferenceOfMeans(const ClusteredMetric& a, const ClusteredMetric& b,
                                    double* kept = nullptr) {
  Difference d;
  d.units = a.units() + b.units();
  if (kept != nullptr) *kept = 1;
  if (a.units() < 2 || b.units() < 2) return d;
  const double na = static_cast<double>(a.units()), nb = static_cast<double>(b.units());
  const double xx = a.variance_x() * (na - 1) + b.variance_x() * (nb - 1);
  const double theta = xx > 0 ? (a.covariance() * (na - 1) + b.covariance() * (nb - 1)) / xx : 0;
  auto variance = [](const ClusteredMetric& m, double t) {
    return std::max(0.0, m.variance() - 2 * t * m.covariance() + t * t * m.variance_x());
  };
  d.value = (b.mean() - a.mean()) - theta * (b.mean_x() - a.mean_x());
  d.variance = variance(a, theta) / na + variance(b, theta) / nb;
  const double plain = variance(a, 0) / na + variance(b, 0) / nb;
  if (kept != nullptr && plain > 0) *kept = d.variance / plain;
  return d;
}

// Mixture sequential probability ratio test of "no difference". `tau`: standard deviation of the
// effects that are thought possible, in the metric's unit. p never rises; it may be read after
// every unit.
class MixtureTest {
 public:
  explicit MixtureTest(double tau, int64_t burn_in = 100) : tau2_(tau * tau), burn_in_(burn_in) {}
  double Update(const Difference& d) {
    if (d.units >= burn_in_ && d.variance > 0) {
      const double v = d.variance;
      const double log_ratio =
          0.5 * std::log(v / (v + tau2_)) + d.value * d.value * tau2_ / (2 * v * (v + tau2_));
      p_ = std::min(p_, std::exp(-log_ratio));
    }
    return p_;
  }
  double p() const { return p_; }
  void Restore(double p) { p_ = p; }

 private:
  double tau2_, p_ = 1;
  int64_t burn_in_;
};

// Half-width of a confidence sequence for a difference: covers at all times at once with
// probability 1 - alpha, for large samples. Narrowest near `tuned_for` units. Infinite before there
// is a variance.
inline double SequenceHalfWidth(const Difference& d, double alpha, double tuned_for = 5000) {
  if (!(d.variance > 0) || d.units < 2) return INFINITY;
  const double a = -2 * std::log(alpha), n = static_cast<double>(d.units);
  const double rho2 = (a + std::log(a + 1)) / tuned_for, t = n * rho2;
  return std::sqrt(d.variance * (t + 1) / t * std::log((t + 1) / (alpha * alpha)));
}

// P(chi-square with k degrees of freedom > x): the upper incomplete gamma function, by series or
// continued fraction.
inline double ChiSquareTail(double x, double k) {
  if (!(x > 0) || !(k > 0)) return 1;
  const double a = k / 2, h = x / 2, scale = std::exp(a * std::log(h) - h - std::lgamma(a));
  if (h < a + 1) {
    double term = 1 / a, sum = term;
    for (double n = a + 1; term > sum * 1e-15; ++n) sum += term *= h / n;
    return std::max(0.0, 1 - scale * sum);
  }
  double b = h + 1 - a, c = 1e300, d = 1 / b, f = d;
  for (int i = 1; i < 10000; ++i) {
    const double an = -i * (i - a);
    b += 2;
    d = 1 / (an * d + b);
    c = b + an / c;
    f *= d * c;
    if (std::abs(d * c - 1) < 1e-15) break;
  }
  return scale * f;
}
// Sample-ratio mismatch: p-value of the counts given the planned weights. Below 0.001 the
// experiment must not be read.
inline double SampleRatioP(absl::Span<const int64_t> counts, absl::Span<const double> weights) {
  double total = 0, sum = 0, chi = 0, kinds = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    total += static_cast<double>(counts[i]);
    sum += weights[i];
  }
  for (size_t i = 0; i < counts.size(); ++i) {
    const double want = total * weights[i] / sum;
    if (want > 0) {
      chi +=
          (static_cast<double>(counts[i]) - want) * (static_cast<double>(counts[i]) - want) / want;
      ++kinds;
    } else if (counts[i] > 0) {
      return 0;
    }
  }
  return kinds > 1 && total > 0 ? ChiSquareTail(chi, kinds - 1) : 1;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_EXPERIMENT_SEQUENTIAL_H_
