#ifndef SLUICE_ROUTERS_EXPERT_CARE_EDIT_MASK_REPAINT_H_
#define SLUICE_ROUTERS_EXPERT_CARE_EDIT_MASK_REPAINT_H_
// CARE-Edit's Mask Repaint: a coarse mask that a convolution of what is painted refines step by
// step, M = clip(M + change, 0, 1). It goes to the mask expert and, among the conditions, to the
// next block's routing.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "sluice/api/tensor_view.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// The change that a logit asks for. kSigmoid is what notes on the paper say: never below 0, so that
// the mask can only grow, against the "tightening" it is said to do; kSigned, 2 sigmoid - 1, is
// what is likely meant.
enum class MaskChange : uint8_t { kSigned, kSigmoid };

struct MaskRepaint {
  int64_t channels = 0;       // of latent and reference features together
  std::vector<float> kernel;  // [channels + 1][3][3], the mask's last
  float bias = 0;
  MaskChange change = MaskChange::kSigned;

  // features [rows * cols, channels], mask [rows * cols] in [0, 1], in place; `before`: as many
  // floats of scratch. Beyond the edges there is nothing. What is no number changes nothing.
  // O(rows cols channels).
  void Run(MatrixView<const float> features, int64_t rows, int64_t cols, absl::Span<float> mask,
           absl::Span<float> before) const {
    std::copy(mask.begin(), mask.end(), before.begin());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        float logit = bias;
        for (int64_t dr = -1; dr <= 1; ++dr) {
          for (int64_t dc = -1; dc <= 1; ++dc) {
            if (r + dr < 0 || r + dr >= rows || c + dc < 0 || c + dc >= cols) continue;
            const int64_t at = (r + dr) * cols + c + dc;
            logit += At(features.row(at), before[static_cast<size_t>(at)], 3 * (dr + 1) + dc + 1);
          }
        }
        const float share = 1 / (1 + std::exp(-logit));
        const float delta = change == MaskChange::kSigned ? 2 * share - 1 : share;
        float& m = mask[static_cast<size_t>(r * cols + c)];
        if (!std::isnan(delta)) m = std::clamp(m + delta, 0.0f, 1.0f);
      }
    }
  }

 private:
  // What one place of the kernel makes of a pixel.
  float At(const float* pixel, float mask, int64_t place) const {
    float sum = kernel[static_cast<size_t>(9 * channels + place)] * mask;
    for (int64_t f = 0; f < channels; ++f)
      sum += kernel[static_cast<size_t>(9 * f + place)] * pixel[f];
    return sum;
  }
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_CARE_EDIT_MASK_REPAINT_H_
