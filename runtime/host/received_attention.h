#ifndef SLUICE_RUNTIME_HOST_RECEIVED_ATTENTION_H_
#define SLUICE_RUNTIME_HOST_RECEIVED_ATTENTION_H_
// What token pruners read as feedback.
#include <algorithm>
#include <vector>

#include "sluice/api/attention_plan.h"
#include "sluice/runtime/kernels/convert/convert.h"
#include "sluice/runtime/kernels/gemm/gemm.h"
#include "sluice/runtime/kernels/softmax/softmax.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
// Attention that every key receives from the last queries: mean over heads and over the queries at
// or after the key, times the number of keys (uniform attention gives about 1, whatever the
// length). q [m, heads, d]: the queries of the last m keys, in order; k [rows, kv_heads, d], both
// after RoPE. O(m rows heads d). Inferred: the paper does not define its score. `self_only`: each
// of the m keys by its own query alone, what a causal decision may know (out [m]).
class ReceivedAttention {
 public:
  void Run(const HeadsView<const float>& q, const KvView& k, float scale, bool self_only,
           float* out) {
    const int64_t m = q.rows, rows = k.rows, d = k.dim,
                  group = q.heads / std::max<int64_t>(1, k.heads);
    if (m == 0) return;
    keys_.resize(rows * d);
    logits_.resize(m * rows);
    scratch_.resize(kernels::GemmScratchFloats(d));
    std::fill(out, out + (self_only ? m : rows), 0.0f);
    for (int64_t h = 0; h < q.heads; ++h) {
      if (h % group == 0) {
        for (int64_t j = 0; j < rows; ++j)
          kernels::ConvertToF32(k.at(j, h / group), k.dtype, d, &keys_[j * d]);
      }
      kernels::GemmNT(q.data + h * q.head_stride, q.row_stride, keys_.data(), d, m, rows, d,
                      logits_.data(), rows, scratch_.data());
      for (int64_t i = 0; i < m; ++i) {
        float* row = &logits_[i * rows];
        const int64_t visible = rows - m + i + 1;
        for (int64_t j = 0; j < visible; ++j) row[j] *= scale;
        kernels::Softmax(row, visible);
        if (self_only) {
          out[i] += row[visible - 1] * static_cast<float>(visible);
        } else {
          for (int64_t j = 0; j < visible; ++j) out[j] += row[j];
        }
      }
    }
    const float heads = static_cast<float>(q.heads);
    for (int64_t j = 0; j < (self_only ? m : rows); ++j) {
      const int64_t votes = self_only ? 1 : std::min(m, rows - j);
      out[j] *= (self_only ? 1.0f : static_cast<float>(rows)) / (heads * static_cast<float>(votes));
    }
  }

 private:
  std::vector<float> keys_, logits_, scratch_;
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_RECEIVED_ATTENTION_H_
