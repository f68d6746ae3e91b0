#ifndef SLUICE_ROUTERS_LAYER_FLUX_ATTENTION_FLUX_ATTENTION_REFERENCE_H_
#define SLUICE_ROUTERS_LAYER_FLUX_ATTENTION_FLUX_ATTENTION_REFERENCE_H_
// Plain double-precision loops: the specification of Flux Attention's pooling and router.
#include <cmath>
#include <string>
#include <vector>

#include "sluice/api/tensor_view.h"
#include "sluice/runtime/kernels/linear_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
// Mean over heads and over tokens 0..P-1 and n-P..n-1, P = min(pool, n).
inline std::vector<double> PrefixSuffixPool(const HeadsView<const float>& q, int64_t pool) {
  std::vector<double> mean(q.dim, 0.0);
  const int64_t p = std::min(pool, q.rows);
  std::vector<int64_t> rows;
  for (int64_t t = 0; t < p; ++t) rows.push_back(t);
  for (int64_t t = q.rows - p; t < q.rows; ++t) rows.push_back(t);
  for (int64_t t : rows) {
    for (int64_t h = 0; h < q.heads; ++h) {
      for (int64_t i = 0; i < q.dim; ++i)
        mean[i] += static_cast<double>(q.at(t, h)[i]) /
                   static_cast<double>(static_cast<int64_t>(rows.size()) * q.heads);
    }
  }
  return mean;
}
// Encoder d -> 8d -> 2d and head 2d -> 4d -> d -> 2 of one layer; SiLU everywhere but after the
// last of each.
inline std::vector<double> FluxLogits(const WeightSource& w, int64_t layer, std::vector<double> x) {
  const size_t d = x.size();
  const auto apply = [&](const std::string& name, size_t out, bool silu) {
    x = Affine(w, "blk." + std::to_string(layer) + ".flux." + name, x, out);
    for (double& v : x) v = silu ? v / (1.0 + std::exp(-v)) : v;
  };
  apply("enc0", 8 * d, true);
  apply("enc1", 2 * d, false);
  apply("head0", 4 * d, true);
  apply("head1", d, true);
  apply("head2", 2, false);
  return x;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_LAYER_FLUX_ATTENTION_FLUX_ATTENTION_REFERENCE_H_
