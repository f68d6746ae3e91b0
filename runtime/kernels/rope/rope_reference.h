#ifndef SLUICE_RUNTIME_KERNELS_ROPE_ROPE_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_ROPE_ROPE_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cmath>
#include <cstddef>

#include "sluice/runtime/kernels/rope/rope.h"

namespace sluice::kernels {
inline void RopeReference(double* x, int64_t d, double position, double base, RopeLayout layout) {
  for (int64_t i = 0; i < d / 2; ++i) {
    const double angle =
        position * std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(d));
    const int64_t a = layout == RopeLayout::kHalves ? i : 2 * i,
                  b = layout == RopeLayout::kHalves ? i + d / 2 : 2 * i + 1;
    const double xa = x[a], xb = x[b];
    x[a] = xa * std::cos(angle) - xb * std::sin(angle);
    x[b] = xa * std::sin(angle) + xb * std::cos(angle);
  }
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_ROPE_ROPE_REFERENCE_H_
