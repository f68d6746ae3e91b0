#ifndef SLUICE_ROUTERS_TOKEN_COG_VLA_ENCODER_MIXER_H_
#define SLUICE_ROUTERS_TOKEN_COG_VLA_ENCODER_MIXER_H_
// The end of CogVLA's encoder-side routing (arXiv 2508.21046): each vision encoder has gathered
// what the instruction asks for in a few aggregation tokens, and the instruction says how much of
// which encoder is taken. The encoders themselves, and how the instruction modulates them, are the
// host's.
//
//   SCORE   softmax(W2 gelu(W1 t)), t the mean of the instruction's embeddings
//   MERGE   sum over the encoders of their share times their tokens (mix=add: every share is 1)
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/types/span.h"
#include "sluice/api/tensor_view.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace token {
enum class Mix : uint8_t { kSoftmax, kAdd };

struct EncoderMixer {
  Linear first, second;  // dim -> hidden -> encoders
  Mix mix = Mix::kSoftmax;

  // t [dim] -> share [encoders]; hidden [first.out] is scratch. NaN in t is NaN in every share.
  void Shares(const float* t, float* hidden, float* share) const {
    if (mix == Mix::kAdd) {
      std::fill_n(share, second.out, 1.0f);
      return;
    }
    first.Apply(t, hidden);
    for (int64_t j = 0; j < first.out; ++j)
      hidden[j] = 0.5f * hidden[j] * (1 + std::erf(hidden[j] * 0.70710678f));
    second.Apply(hidden, share);
    const float most = *std::max_element(share, share + second.out);
    float sum = 0;
    for (int64_t e = 0; e < second.out; ++e) {
      share[e] = std::exp(share[e] - most);
      sum += share[e];
    }
    for (int64_t e = 0; e < second.out; ++e) share[e] /= sum;
  }
  // Tokens of every encoder, all [tokens, width] -> out. O(encoders tokens width).
  void Run(absl::Span<const float> share, absl::Span<const MatrixView<const float>> tokens,
           MatrixView<float> out) const {
    for (int64_t r = 0; r < out.rows; ++r) {
      std::fill_n(out.row(r), out.cols, 0.0f);
      for (size_t e = 0; e < tokens.size(); ++e) {
        for (int64_t c = 0; c < out.cols; ++c) out.row(r)[c] += share[e] * tokens[e].row(r)[c];
      }
    }
  }
};
}  // namespace token
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_TOKEN_COG_VLA_ENCODER_MIXER_H_
