#ifndef SLUICE_ROUTERS_EXPERT_SMALL_THINKER_SPARSE_HEAD_H_
#define SLUICE_ROUTERS_EXPERT_SMALL_THINKER_SPARSE_HEAD_H_
// The sparse language-model head of SmallThinker (arXiv 2507.20984): a small predictor says which
// tokens of the vocabulary are worth a logit.
//
//   SCORE   W2 (W1 x), of low rank
//   SELECT  tokens of a score above the threshold; NaN does not hide a token
//   own     their logits; every other token's is -inf, its score, or 0
//
// 0, as in the published code, is not neutral: where all logits computed are negative, a token that
// was skipped wins. The token of the best score is always computed (ours), so that there is one.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "sluice/api/dtype.h"
#include "sluice/api/tensor_view.h"
#include "sluice/runtime/kernels/dot/dot.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// What a token is given that was not computed. A score is comparable with logits only where the
// predictor was trained to be.
enum class Skipped : uint8_t { kNever, kScore, kZero };

struct SparseHead {
  Linear first, second;          // dim -> rank -> tokens
  MatrixView<const float> head;  // [tokens, dim]
  float threshold = 0;           // -inf: every token is computed
  Skipped skipped = Skipped::kNever;

  // x [dim] -> logits [tokens]; hidden [rank] is scratch. Returns the logits computed.
  // O(dim rank + rank tokens), and O(dim) a logit.
  int64_t Logits(const float* x, float* hidden, float* logits) const {
    first.Apply(x, hidden);
    second.Apply(hidden, logits);
    const int64_t best = std::max_element(logits, logits + head.rows) - logits;
    int64_t computed = 0;
    for (int64_t t = 0; t < head.rows; ++t) {
      if (logits[t] <= threshold && t != best) {
        if (skipped == Skipped::kNever) logits[t] = -std::numeric_limits<float>::infinity();
        if (skipped == Skipped::kZero) logits[t] = 0;
        continue;
      }
      logits[t] = kernels::Dot(x, head.row(t), DType::kF32, head.cols);
      ++computed;
    }
    return computed;
  }
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_SMALL_THINKER_SPARSE_HEAD_H_
