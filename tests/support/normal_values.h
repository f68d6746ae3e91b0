#ifndef SLUICE_TESTS_SUPPORT_NORMAL_VALUES_H_
#define SLUICE_TESTS_SUPPORT_NORMAL_VALUES_H_
#include <cstddef>
#include <random>
#include <vector>

namespace sluice::kernels {
// Seeded standard normal values.
inline std::vector<float> Normal(size_t n, unsigned seed) {
  std::mt19937 g(seed);
  std::normal_distribution<float> d;
  std::vector<float> x(n);
  for (float& e : x) e = d(g);
  return x;
}
}  // namespace sluice::kernels
#endif  // SLUICE_TESTS_SUPPORT_NORMAL_VALUES_H_
