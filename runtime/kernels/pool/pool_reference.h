#ifndef SLUICE_RUNTIME_KERNELS_POOL_POOL_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_POOL_POOL_REFERENCE_H_
// The specification: plain loops in double precision.
#include <algorithm>
#include <cmath>
#include <cstddef>

#include "sluice/runtime/kernels/pool/pool.h"

namespace sluice::kernels {
// get(j, i): element i of row j.
template <class Get>
double PoolReference(PoolKind kind, Get&& get, int64_t n, int64_t i) {
  if (n == 0) return 0;
  double r = get(0, i);
  for (int64_t j = 1; j < n; ++j) {
    const double x = get(j, i);
    if (kind == PoolKind::kMean || std::isnan(r + x)) {
      r += x;
    } else {
      r = kind == PoolKind::kMax ? std::max(r, x) : std::min(r, x);
    }
  }
  return kind == PoolKind::kMean ? r / static_cast<double>(n) : r;
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_POOL_POOL_REFERENCE_H_
