#ifndef SLUICE_ROUTERS_COMMON_CHOLESKY_H_
#define SLUICE_ROUTERS_COMMON_CHOLESKY_H_
// What closed-form fits end with. Double precision; offline.
#include <cmath>
#include <cstdint>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// b [n, columns] becomes a^-1 b of a symmetric a [n, n], whose factor takes its place; false, and
// both are spoilt, where a is not positive definite. O(n^2 (n + columns)).
inline bool CholeskySolve(int64_t n, int64_t columns, std::vector<double>& a,
                          std::vector<double>& b) {
  for (int64_t j = 0; j < n; ++j) {
    double diagonal = a[j * n + j];
    for (int64_t k = 0; k < j; ++k) diagonal -= a[j * n + k] * a[j * n + k];
    if (!(diagonal > 0)) return false;
    a[j * n + j] = std::sqrt(diagonal);
    for (int64_t i = j + 1; i < n; ++i) {
      double s = a[i * n + j];
      for (int64_t k = 0; k < j; ++k) s -= a[i * n + k] * a[j * n + k];
      a[i * n + j] = s / a[j * n + j];
    }
  }
  const auto reduce = [&](int64_t i, int64_t k, double factor) {
    for (int64_t c = 0; c < columns; ++c) b[i * columns + c] -= factor * b[k * columns + c];
  };
  const auto divide = [&](int64_t i) {
    for (int64_t c = 0; c < columns; ++c) b[i * columns + c] /= a[i * n + i];
  };
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < i; ++k) reduce(i, k, a[i * n + k]);
    divide(i);
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    for (int64_t k = i + 1; k < n; ++k) reduce(i, k, a[k * n + i]);
    divide(i);
  }
  return true;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_COMMON_CHOLESKY_H_
