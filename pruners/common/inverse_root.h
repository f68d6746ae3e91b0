#ifndef SLUICE_PRUNERS_COMMON_INVERSE_ROOT_H_
#define SLUICE_PRUNERS_COMMON_INVERSE_ROOT_H_
// The upper triangular root of an inverse, by which second-order pruners weigh and make up for what
// they drop. Double precision; not a hot path.
#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/executor.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace pruning {
// U, upper triangular, with U^T U = H^-1; row-major, h [n, n] symmetric. H = R R^T with R upper
// triangular, eliminated from the last column, and U = R^-1: no inverse is ever formed. What stands
// below the diagonal is 0. InvalidArgument where H is not positive definite. O(n^3).
inline absl::StatusOr<std::vector<double>> InverseRoot(std::vector<double> h, int64_t n,
                                                       Executor& executor) {
  const auto row = [n](std::vector<double>& m, int64_t i) { return m.data() + i * n; };
  for (int64_t j = n - 1; j >= 0; --j) {
    const double* pivot = row(h, j);
    const auto tail = [&](const double* x) {
      double sum = 0;
      for (int64_t k = j + 1; k < n; ++k) sum += x[k] * pivot[k];
      return sum;
    };
    const double square = pivot[j] - tail(pivot);
    if (!(square > 0) || std::isinf(square))
      return absl::InvalidArgumentError(
          absl::StrCat("the matrix of second moments is not positive definite at column ", j,
                       " of ", n, "; allowed: one that is, or more damping"));
    const double root = std::sqrt(square);
    executor.ParallelFor(j, 64, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        double* x = row(h, i);
        x[j] = (x[j] - tail(x)) / root;
      }
    });
    row(h, j)[j] = root;
  }

  std::vector<double> u(h.size());
  for (int64_t i = n - 1; i >= 0; --i) {
    const double* r = row(h, i);
    double* to = row(u, i);
    for (int64_t k = i + 1; k < n; ++k) {
      const double* from = row(u, k);
      for (int64_t c = k; c < n; ++c) to[c] -= r[k] * from[c];
    }
    for (int64_t c = i + 1; c < n; ++c) to[c] /= r[i];
    to[i] = 1 / r[i];
  }
  return u;
}
}  // namespace pruning
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_COMMON_INVERSE_ROOT_H_
