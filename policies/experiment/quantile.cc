#include "sluice/policies/experiment/quantile.h"

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

MeanInterval StudentInterval(absl::Span<const double> x) {
  const double n = static_cast<double>(x.size());
  MeanInterval m;
  for (double v : x) m.value += v / n;
  m.low = m.high = m.value;
  if (n < 2) return m;
  double variance = 0;
  for (double v : x) variance += (v - m.value) * (v - m.value) / (n - 1);
  const double half = StudentQuantile(0.975, n - 1) * std::sqrt(variance / n);
  m.low -= half;
  m.high += half;
  return m;
}
SLUICE_END_NAMESPACE
