#ifndef SLUICE_RUNTIME_KERNELS_GELU_GELU_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_GELU_GELU_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cmath>
#include <cstddef>

namespace sluice::kernels {
inline double GeluReference(double z) {
  return z / 2 * (1 + std::tanh(0.7978845608028653558799 * (z + 0.044715 * z * z * z)));
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_GELU_GELU_REFERENCE_H_
