#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_INDEXER_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_INDEXER_H_
// Token scores I(t, s) = sum_j w(t, j) ReLU(q(t, j) . k(s)) for DSA and HISA. Where the host has no
// trained indexer the attention's own queries and keys stand in: every query head is an index head
// of weight 1 against its KV head's keys. That substitute costs as much as QK^T, and must be named
// wherever it is measured.
#include "sluice/routers/attention/common/planning.h"
#include "sluice/runtime/kernels/index_score/index_score.h"

SLUICE_BEGIN_NAMESPACE
namespace attention_common {
class Indexer {
 public:
  static int64_t Streams(const AttentionShape& s) { return s.index_heads > 0 ? 1 : s.kv_heads; }
  static int64_t Heads(const AttentionShape& s) {
    return s.index_heads > 0 ? s.index_heads : s.heads / s.kv_heads;
  }
  static int64_t Width(const AttentionShape& s) {
    return s.index_heads > 0 ? s.index_dim : s.head_dim;
  }
  // Floats of scratch for scoring up to n keys.
  static int64_t ScratchFloats(const AttentionShape& s, int64_t n) {
    return static_cast<int64_t>(kernels::IndexScratchFloats(Heads(s), Width(s))) +
           Heads(s) * (Width(s) + 1) + n + 64;
  }
  static absl::Status Check(const AttentionShape& s, const AttentionInputs& in) {
    if (s.index_heads == 0) return absl::OkStatus();
    const IndexInputs& x = in.index;
    if (x.q.rows != in.q.rows || x.q.heads != s.index_heads || x.q.dim != s.index_dim ||
        x.weight.rows != in.q.rows || x.weight.cols != s.index_heads || x.k.rows != in.kv_len() ||
        x.k.heads != 1 || x.k.dim != s.index_dim || x.k.dtype != DType::kF32) {
      return absl::InvalidArgumentError(absl::StrCat(
          "index inputs: q [", x.q.rows, ", ", x.q.heads, ", ", x.q.dim, "], weight [",
          x.weight.rows, ", ", x.weight.cols, "], k [", x.k.rows, ", ", x.k.heads, ", ", x.k.dim,
          "] of ", DTypeName(x.k.dtype), "; planned for ", s.index_heads, " heads of width ",
          s.index_dim, " over ", in.kv_len(), " keys"));
    }
    return absl::OkStatus();
  }
  Indexer(const AttentionShape& s, const AttentionInputs& in) : s_(s), in_(in) {}

  // Index keys of one stream as a one-head view.
  KvView Keys(int64_t stream) const {
    if (s_.index_heads > 0) return in_.index.k;
    KvView k = in_.k;
    k.data = in_.k.at(0, stream);
    k.heads = 1;
    return k;
  }
  // score [n] of query row i against keys ids[0, n) (or the first n), or against `means` rows when
  // given.
  void Score(int64_t i, const uint32_t* ids, int64_t n, const BlockMeans* means, float* score,
             float* scratch) const {
    const int64_t heads = Heads(s_), width = Width(s_), streams = Streams(s_);
    float* kernel = scratch;
    float* q = scratch + kernels::IndexScratchFloats(heads, width);
    float* weight = q + heads * width;
    float* part = weight + heads;
    for (int64_t stream = 0; stream < streams; ++stream) {
      for (int64_t h = 0; h < heads; ++h) {
        const float* from =
            s_.index_heads > 0 ? in_.index.q.at(i, h) : in_.q.at(i, stream * heads + h);
        std::memcpy(q + h * width, from, static_cast<size_t>(width) * sizeof(float));
        weight[h] = s_.index_heads > 0 ? in_.index.weight.row(i)[h] : 1.0f;
      }
      const KvView keys = Keys(stream);
      float* to = stream == 0 ? score : part;
      if (means != nullptr) {
        kernels::IndexScore(q, weight, heads, width, means->At(stream, 0), DType::kF32,
                            static_cast<size_t>(width) * sizeof(float), ids, n, to, kernel);
      } else {
        kernels::IndexScore(q, weight, heads, width, keys.data, keys.dtype, keys.row_bytes(), ids,
                            n, to, kernel);
      }
      if (stream > 0) {
        for (int64_t j = 0; j < n; ++j) score[j] += part[j];
      }
    }
  }

 private:
  const AttentionShape& s_;
  const AttentionInputs& in_;
};
}  // namespace attention_common
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_INDEXER_H_
