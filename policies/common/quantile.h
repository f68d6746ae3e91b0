#ifndef SLUICE_POLICIES_COMMON_QUANTILE_H_
#define SLUICE_POLICIES_COMMON_QUANTILE_H_
// Distributions that intervals and tests need, by Boost.Math, which is compiled here once: its
// headers take seconds.
#include "absl/types/span.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// x with P(X <= x) = p, for p in (0, 1).
double NormalQuantile(double p);
double StudentQuantile(double p, double degrees);  // degrees > 0
// P(chi-square > x); 1 where x or the degrees of freedom are not above 0.
double ChiSquareTail(double x, double degrees);

// Of the mean of independent numbers. `error`: its standard error, 0 for fewer than 2.
struct MeanAndError {
  double mean = 0, error = 0;
};
MeanAndError MeanAndErrorOf(absl::Span<const double> x);

struct MeanInterval {
  double value = 0, low = 0, high = 0;  // 95 %
};
// The mean of independent numbers and Student's interval, which is the mean alone for fewer than 2.
MeanInterval StudentInterval(absl::Span<const double> x);
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_COMMON_QUANTILE_H_
