#include "sluice/policies/common/quantile.h"

#include <boost/math/distributions/chi_squared.hpp>
#include <boost/math/distributions/normal.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>

SLUICE_BEGIN_NAMESPACE
double NormalQuantile(double p) { return boost::math::quantile(boost::math::normal(), p); }

double StudentQuantile(double p, double degrees) {
  return boost::math::quantile(boost::math::students_t(degrees), p);
}

double ChiSquareTail(double x, double degrees) {
  if (!(x > 0) || !(degrees > 0)) return 1;
  return boost::math::cdf(boost::math::complement(boost::math::chi_squared(degrees), x));
}

MeanAndError MeanAndErrorOf(absl::Span<const double> x) {
  const double n = static_cast<double>(x.size());
  MeanAndError m;
  for (double v : x) m.mean += v / n;
  if (n < 2) return m;
  double variance = 0;
  for (double v : x) variance += (v - m.mean) * (v - m.mean) / (n - 1);
  m.error = std::sqrt(variance / n);
  return m;
}

MeanInterval StudentInterval(absl::Span<const double> x) {
  const MeanAndError m = MeanAndErrorOf(x);
  if (x.size() < 2) return {m.mean, m.mean, m.mean};
  const double half = StudentQuantile(0.975, static_cast<double>(x.size()) - 1) * m.error;
  return {m.mean, m.mean - half, m.mean + half};
}
SLUICE_END_NAMESPACE
