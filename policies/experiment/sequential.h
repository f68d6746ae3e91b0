#ifndef SLUICE_POLICIES_EXPERIMENT_SEQUENTIAL_H_
#define SLUICE_POLICIES_EXPERIMENT_SEQUENTIAL_H_
// Is B better than A, asked as often as one likes: always-valid p-values (mSPRT, Johari et al.,
// arXiv 1512.04922), asymptotic confidence sequences (Waudby-Smith et al., arXiv 2103.06476),
// variance reduction by what was known before (CUPED, Deng et al. 2013), and the check that units
// were split as planned (Lindon & Malek, arXiv 2011.03567).
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

// Prior evidence of SampleRatioP, in units: splits that are off by about 1 / (2 sqrt(this)) are
// found soonest.
inline constexpr double kSampleRatioPrior = 1000;
// Sample-ratio mismatch: were units split by the planned weights? Of the arms' counts so far, to be
// read after every unit: under the planned split it falls to p or below at any time ever with
// probability p at most. 1 / Bayes factor of multinomial counts, Dirichlet around the planned
// shares against the planned shares (Anytime-Valid Inference for Multinomial Count Data, Lindon &
// Malek, arXiv 2011.03567); the order of the units does not matter. Below kSampleRatioAlarm the
// experiment must not be read.
inline constexpr double kSampleRatioAlarm = 0.001;
inline double SampleRatioP(absl::Span<const int64_t> counts, absl::Span<const double> weights) {
  double planned = 0;
  for (double w : weights) planned += w;
  double total = 0;
  double log_bayes = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] <= 0) continue;
    const double share = weights[i] / planned;
    if (!(share > 0)) return 0;  // units in an arm that gets none
    const double n = static_cast<double>(counts[i]);
    const double prior = kSampleRatioPrior * share;
    total += n;
    log_bayes += std::lgamma(prior + n) - std::lgamma(prior) - n * std::log(share);
  }
  log_bayes += std::lgamma(kSampleRatioPrior) - std::lgamma(kSampleRatioPrior + total);
  return std::min(1.0, std::exp(-log_bayes));
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_EXPERIMENT_SEQUENTIAL_H_
