#ifndef SLUICE_PRUNERS_HEAD_HARD_ATTENTION_GATES_HARD_ATTENTION_GATES_REFERENCE_H_
#define SLUICE_PRUNERS_HEAD_HARD_ATTENTION_GATES_HARD_ATTENTION_GATES_REFERENCE_H_
// The specification: plain loops in double precision. A channel whose gate is below the threshold
// is left out, whatever its weights are; one whose gate equals it stays. No channels: nothing.
#include <cmath>
#include <cstddef>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
inline double Gate(double a) { return 1 / (1 + std::exp(-a)); }

// One gated branch: y_c = gate(a_c) (w_c . x + b_c).
inline std::vector<double> Gated(const std::vector<double>& a, double threshold,
                                 const std::vector<std::vector<double>>& w,
                                 const std::vector<double>& b, const std::vector<double>& x) {
  std::vector<double> y;
  for (size_t c = 0; c < a.size(); ++c) {
    double sum = b[c];
    for (size_t i = 0; i < x.size(); ++i) sum += w[c][i] * x[i];
    y.push_back(Gate(a[c]) < threshold ? 0 : Gate(a[c]) * sum);
  }
  return y;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_HEAD_HARD_ATTENTION_GATES_HARD_ATTENTION_GATES_REFERENCE_H_
