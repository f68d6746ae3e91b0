#ifndef SLUICE_RUNTIME_KERNELS_ATTENTION_PANEL_ATTENTION_PANEL_REFERENCE_H_
#define SLUICE_RUNTIME_KERNELS_ATTENTION_PANEL_ATTENTION_PANEL_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <vector>

namespace sluice::kernels {
// Attention of one query row over any list of keys: logit(j) in natural units (already scaled,
// capped and biased), value(j, i). Returns the log-sum-exp; out [dv] is 0 and the result -inf when
// the list is empty.
template <class Logit, class Value>
double AttendRowReference(int64_t n, int64_t dv, Logit&& logit, Value&& value, double* out) {
  double m = -std::numeric_limits<double>::infinity(), l = 0;
  for (int64_t j = 0; j < n; ++j) m = std::fmax(m, logit(j));
  for (int64_t i = 0; i < dv; ++i) out[i] = 0;
  if (std::isinf(m)) return m;
  for (int64_t j = 0; j < n; ++j) {
    const double p = std::exp(logit(j) - m);
    l += p;
    for (int64_t i = 0; i < dv; ++i) out[i] += p * value(j, i);
  }
  for (int64_t i = 0; i < dv; ++i) out[i] /= l;
  return m + std::log(l);
}
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_ATTENTION_PANEL_ATTENTION_PANEL_REFERENCE_H_
