#ifndef SLUICE_ROUTERS_COMMON_PIPELINE_GATE_H_
#define SLUICE_ROUTERS_COMMON_PIPELINE_GATE_H_
// Gate: what each item thinks of each unit. Two arrays come out, because a bias, noise or a forced
// set may change which units win (rank) without changing how much of each is mixed in (weight).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/types/span.h"
#include "sluice/api/tensor_view.h"
#include "sluice/runtime/kernels/linear.h"
#include "sluice/runtime/kernels/softmax/softmax.h"

SLUICE_BEGIN_NAMESPACE
namespace pipeline {
// How a logit becomes a score.
enum class ScoreKind : uint8_t { kSoftmax, kSigmoid, kSqrtSoftplus, kLogit };

// One item's scores.
struct Scores {
  absl::Span<float> rank, weight;  // [units]
};

// rank = weight + bias. Returns the NaN ranks.
inline int64_t RankRow(absl::Span<const float> bias, Scores out) {
  int64_t nans = 0;
  for (size_t u = 0; u < out.rank.size(); ++u) {
    out.rank[u] = bias.empty() ? out.weight[u] : out.weight[u] + bias[u];
    nans += std::isnan(out.rank[u]) ? 1 : 0;
  }
  return nans;
}

// logits [units] -> weight = score(logit), rank = weight + bias. Softmax is over the logits that
// are numbers; a NaN logit, or a NaN bias, is a NaN rank, which no selector takes. `bias`: [units],
// or empty. Returns the NaN ranks. In single precision whatever the activations are. O(units).
inline int64_t ScoreRow(ScoreKind kind, const float* logits, absl::Span<const float> bias,
                        Scores out) {
  const size_t n = out.rank.size();
  if (kind == ScoreKind::kSoftmax) {
    // The kernel's softmax, unless some logit is none that it could be taken over.
    std::copy_n(logits, n, out.weight.begin());
    if (std::isfinite(kernels::Softmax(out.weight.data(), static_cast<int64_t>(n))))
      return RankRow(bias, out);
  }
  float most = -std::numeric_limits<float>::infinity();
  if (kind == ScoreKind::kSoftmax) {
    for (size_t u = 0; u < n; ++u) most = logits[u] > most ? logits[u] : most;
  }
  float total = 0;
  for (size_t u = 0; u < n; ++u) {
    const float z = logits[u];
    float s = z;
    if (kind == ScoreKind::kSoftmax) s = std::exp(z - most);
    if (kind == ScoreKind::kSigmoid) s = 1.0f / (1.0f + std::exp(-z));
    if (kind == ScoreKind::kSqrtSoftplus)
      s = std::sqrt(std::max(z, 0.0f) + std::log1p(std::exp(-std::abs(z))));
    out.weight[u] = s;
    if (!std::isnan(s)) total += s;
  }

  if (kind == ScoreKind::kSoftmax) {
    for (float& w : out.weight) w /= total;
  }
  return RankRow(bias, out);
}

// A learned linear gate: logits [rows, units] of x [rows, in]. scratch:
// kernels::GemmScratchFloats(in).
struct LinearGate {
  Linear linear;
  void Logits(const float* x, int64_t rows, float* logits, float* scratch) const {
    linear.ApplyRows(x, rows, logits, scratch);
  }
};

// The same logits for every item: what Freeze turns into a mask.
struct ConstantGate {
  absl::Span<const float> logits;
  const float* Row() const { return logits.data(); }
};

// One row of logits a task. O(1).
struct TableGate {
  MatrixView<const float> table;  // [tasks, units]
  // nullptr: no such task.
  const float* Row(uint64_t task) const {
    return task < static_cast<uint64_t>(table.rows) ? table.row(static_cast<int64_t>(task))
                                                    : nullptr;
  }
};
}  // namespace pipeline
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_COMMON_PIPELINE_GATE_H_
