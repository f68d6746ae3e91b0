#ifndef SLUICE_ROUTERS_EXPERT_ROMA_NEIGHBOURS_H_
#define SLUICE_ROUTERS_EXPERT_ROMA_NEIGHBOURS_H_
// Samples near a point, by Euclidean distance of embeddings, weighted by a Gaussian of it.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/types/span.h"
#include "sluice/api/tensor_view.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
struct Neighbour {
  int64_t sample = 0;
  double distance = 0;  // squared
  double weight = 0;    // sums to 1 over the neighbours
};

// The nearest samples of `embeddings` to x [cols], `allowed`(sample) of them only, the nearest
// first; at most out.size(). Ties go to the lowest sample; a distance that is no number is none.
// Weights exp(-distance / (2 sigma^2)), however far away all of them are. Returns how many.
// O(samples (cols + out.size())).
template <class Allowed>
int64_t Nearest(MatrixView<const float> embeddings, const float* x, double sigma,
                const Allowed& allowed, absl::Span<Neighbour> out) {
  int64_t n = 0;
  for (int64_t j = 0; j < embeddings.rows; ++j) {
    if (!allowed(j)) continue;
    double distance = 0;
    for (int64_t c = 0; c < embeddings.cols; ++c) {
      const double off = static_cast<double>(embeddings.row(j)[c]) - static_cast<double>(x[c]);
      distance += off * off;
    }
    if (std::isnan(distance)) continue;
    // Behind all that are as near, and before all that are farther.
    int64_t at = n;
    while (at > 0 && out[at - 1].distance > distance) --at;
    if (at == std::ssize(out)) continue;
    n = std::min<int64_t>(n + 1, std::ssize(out));
    std::move_backward(out.begin() + at, out.begin() + n - 1, out.begin() + n);
    out[at] = {j, distance, 0};
  }
  double sum = 0;
  for (int64_t e = 0; e < n; ++e) {
    out[e].weight = std::exp((out[0].distance - out[e].distance) / (2 * sigma * sigma));
    sum += out[e].weight;
  }
  for (int64_t e = 0; e < n; ++e) out[e].weight /= sum;
  return n;
}
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_ROMA_NEIGHBOURS_H_
