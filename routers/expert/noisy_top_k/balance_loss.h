#ifndef SLUICE_ROUTERS_EXPERT_NOISY_TOP_K_BALANCE_LOSS_H_
#define SLUICE_ROUTERS_EXPERT_NOISY_TOP_K_BALANCE_LOSS_H_
// What training with noisy gates balances (arXiv 1701.06538), as numbers: for tests, and to watch a
// gate. Not a hot path.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "sluice/api/tensor_view.h"
#include "sluice/routers/common/pipeline/analyzer.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// The smooth load of training: for each expert the sum over tokens of the probability that it would
// be among the k if its own noise alone were drawn again,
//
//   Phi((clean - threshold) / scale), threshold the k-th largest noisy logit of the *other*
//   experts: the (k + 1)-th of all where the expert is in, the k-th where it is out.
//
// clean, noisy and scale [items, units] are logits and standard deviations of the same tokens; k in
// [1, units). A metric for tests and training, not a hot path: O(items units^2).
inline std::vector<double> SmoothLoad(MatrixView<const float> clean, MatrixView<const float> noisy,
                                      MatrixView<const float> scale, int64_t k) {
  const int64_t units = clean.cols;
  std::vector<double> load(static_cast<size_t>(units));
  std::vector<float> others;
  for (int64_t i = 0; i < clean.rows; ++i) {
    for (int64_t u = 0; u < units; ++u) {
      others.clear();
      for (int64_t v = 0; v < units; ++v) {
        if (v != u) others.push_back(noisy.row(i)[v]);
      }
      std::nth_element(others.begin(), others.begin() + k - 1, others.end(), std::greater<>());
      const double over = static_cast<double>(clean.row(i)[u]) - static_cast<double>(others[k - 1]);
      load[u] += 0.5 * std::erfc(-over / (static_cast<double>(scale.row(i)[u]) * std::sqrt(2.0)));
    }
  }
  return load;
}

// What training adds to the loss: coefficient (CV^2(importance) + CV^2(load)), importance the
// column sums of the weights. O(units).
inline double NoisyBalanceLoss(absl::Span<const double> importance, absl::Span<const double> load,
                               double coefficient = 1e-2) {
  return coefficient * (pipeline::SquaredVariation(importance) + pipeline::SquaredVariation(load));
}
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_NOISY_TOP_K_BALANCE_LOSS_H_
