#ifndef SLUICE_TESTS_SUPPORT_NOT_FINITE_H_
#define SLUICE_TESTS_SUPPORT_NOT_FINITE_H_
// What inputs may hold and kernels have rules for.
#include <limits>

namespace sluice::tests {
inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
}  // namespace sluice::tests
#endif  // SLUICE_TESTS_SUPPORT_NOT_FINITE_H_
