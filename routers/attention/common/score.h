#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_SCORE_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_SCORE_H_
// SCORE: what queries say of units.
#include "sluice/routers/attention/common/int_keys.h"
#include "sluice/routers/attention/common/plan.h"
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/sum.h"
#include "sluice/runtime/kernels/dot/dot.h"
#include "sluice/runtime/kernels/gemm/gemm.h"
#include "sluice/runtime/kernels/index_score/index_score.h"
#include "sluice/runtime/kernels/softmax/softmax.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
inline Scratch<float> AddGemmScratch(RouterPlan& plan, int64_t width) {
  return plan.AddScratch<float>(kernels::GemmScratchFloats(width));
}

// score [rows, units] = q [rows, d] . table [units, d].
inline void ScoreDot(const float* q, int64_t rows, const float* table, int64_t units, int64_t d,
                     float* score, float* gemm) {
  kernels::GemmNT(q, d, table, d, rows, units, d, score, units, gemm);
}

// The same, each row then a softmax over the units.
inline void ScoreSoftmax(const float* q, int64_t rows, const float* table, int64_t units, int64_t d,
                         float* score, float* gemm) {
  ScoreDot(q, rows, table, units, d, score, gemm);
  for (int64_t i = 0; i < rows; ++i) kernels::Softmax(score + i * units, units);
}

// The two over a table whose last unit is `last` [d] instead.
inline void ScoreDotLast(const float* q, int64_t rows, const float* table, const float* last,
                         int64_t units, int64_t d, float* score, float* gemm) {
  ScoreDot(q, rows, table, units, d, score, gemm);
  kernels::GemmNT(q, d, last, d, rows, 1, d, score + units - 1, units, gemm);
}
inline void ScoreSoftmaxLast(const float* q, int64_t rows, const float* table, const float* last,
                             int64_t units, int64_t d, float* score, float* gemm) {
  ScoreDotLast(q, rows, table, last, units, d, score, gemm);
  for (int64_t i = 0; i < rows; ++i) kernels::Softmax(score + i * units, units);
}

// best [units] = the largest of best and every row.
inline void MaxOverRows(const float* score, int64_t rows, int64_t units, float* best) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t u = 0; u < units; ++u) best[u] = std::max(best[u], score[i * units + u]);
  }
}

// score [rows, n] = q [rows, d] . the first n keys of a KV head; keys: scratch of [kKeyBatch, d].
inline constexpr int64_t kKeyBatch = 64;
inline void ScoreAllKeys(const float* q, int64_t rows, const KvView& k, int64_t kv, int64_t n,
                         float* score, float* keys, float* gemm) {
  for (int64_t at = 0; at < n; at += kKeyBatch) {
    const int64_t some = std::min(kKeyBatch, n - at);
    KeysAsFloat(k, kv, at, some, keys);
    kernels::GemmNT(q, k.dim, keys, k.dim, rows, some, k.dim, score + at, n, gemm);
  }
}

// score [blocks] = the mean scaled query of some rows times the mean of each block that the last of
// them sees; of the last block, of its keys up to there. Returns how many blocks. query, last:
// scratch [d].
inline int64_t ScoreMeans(const AttentionInputs& in, TileRows rows, int64_t head,
                          const BlockMeans& means, float* score, float* query, float* last,
                          float* gemm) {
  const int64_t kv = head / (in.q.heads / in.k.heads);
  const int64_t end = in.q_begin + rows.begin + rows.count;
  const int64_t blocks = CeilDiv(end, means.block());
  MeanQuery(in.q, rows, head, in.scale, query);
  means.MeanBefore(in.k, kv, blocks - 1, end, last);
  ScoreDotLast(query, 1, means.At(kv, 0), last, blocks, in.q.dim, score, gemm);
  return blocks;
}

// Token scores I(t, s) = sum_j w(t, j) ReLU(q(t, j) . k(s)) for DSA and HISA. Where the host has no
// trained indexer the attention's own queries and keys stand in: every query head is an index head
// of weight 1 against its KV head's keys. That substitute costs as much as QK^T, and must be named
// wherever it is measured.
class Indexer {
 public:
  static int64_t Streams(const AttentionShape& s) { return s.index_heads > 0 ? 1 : s.kv_heads; }
  static int64_t Heads(const AttentionShape& s) {
    return s.index_heads > 0 ? s.index_heads : GroupSize(s);
  }
  static int64_t Width(const AttentionShape& s) {
    return s.index_heads > 0 ? s.index_dim : s.head_dim;
  }
  // Floats of scratch for scoring up to n keys.
  static int64_t ScratchFloats(const AttentionShape& s, int64_t n) {
    return OwnFloats(s) + kernels::IndexScratchFloats(Heads(s), 2 * Width(s)) +
           Heads(s) * (Width(s) + 1) + n + 64;
  }
  static absl::Status Check(const AttentionShape& s, const AttentionInputs& in) {
    if (s.index_heads == 0) return absl::OkStatus();
    const IndexInputs& x = in.index;
    if (x.q.rows == in.q.rows && x.q.heads == s.index_heads && x.q.dim == s.index_dim &&
        x.weight.rows == in.q.rows && x.weight.cols == s.index_heads && x.k.rows == in.kv_len() &&
        x.k.heads == 1 && x.k.dim == s.index_dim && x.k.dtype == DType::kF32)
      return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("index inputs: q [", x.q.rows, ", ", x.q.heads, ", ", x.q.dim, "], weight [",
                     x.weight.rows, ", ", x.weight.cols, "], k [", x.k.rows, ", ", x.k.heads, ", ",
                     x.k.dim, "] of ", DTypeName(x.k.dtype), "; planned for ", s.index_heads,
                     " heads of width ", s.index_dim, " over ", in.kv_len(), " keys"));
  }
  // The keys in few bits, if they are not empty, are what tokens are scored with.
  Indexer(const AttentionShape& s, const AttentionInputs& in, const IntKeys& few_bits)
      : s_(s), in_(in), few_bits_(few_bits) {}

  // The keys that are scored: [kv_len, streams, width].
  const KvView& Keys() const { return s_.index_heads > 0 ? in_.index.k : in_.k; }

  // score [n] of query row i against keys ids[0, n), ascending, or the first n.
  void ScoreKeys(int64_t i, const uint32_t* ids, int64_t n, float* score, float* scratch) const {
    if (few_bits_.empty()) return ScoreKeysAsGiven(i, ids, n, score, scratch);
    auto* rounded = reinterpret_cast<int8_t*>(scratch);
    EachStream(i, n, score, scratch, [&](int64_t stream, float* q, float* w, float* to, float*) {
      few_bits_.RoundQueries(q, Heads(s_), w, rounded);
      few_bits_.Score(rounded, w, Heads(s_), stream, ids, n, to);
    });
  }
  // The same whether or not there are keys in few bits.
  void ScoreKeysAsGiven(int64_t i, const uint32_t* ids, int64_t n, float* score,
                        float* scratch) const {
    const KvView& keys = Keys();
    EachStream(i, n, score, scratch,
               [&](int64_t stream, const float* q, const float* w, float* to, float* kernel) {
                 kernels::IndexScore(q, w, Heads(s_), Width(s_), keys.at(0, stream), keys.dtype,
                                     keys.row_bytes(), ids, n, to, kernel);
               });
  }
  // score [n] against the first n block means.
  void ScoreMeans(int64_t i, const BlockMeans& means, int64_t n, float* score,
                  float* scratch) const {
    const int64_t row_bytes = Width(s_) * int64_t{sizeof(float)};
    EachStream(i, n, score, scratch,
               [&](int64_t stream, const float* q, const float* w, float* to, float* kernel) {
                 kernels::IndexScore(q, w, Heads(s_), Width(s_), means.At(stream, 0), DType::kF32,
                                     row_bytes, nullptr, n, to, kernel);
               });
  }

  // score [n]: what no key of the first n blocks scores above. A head of negative weight counts by
  // the least product that its elements allow.
  void ScoreBounds(int64_t i, const BlockBounds& bounds, int64_t n, float* score,
                   float* scratch) const {
    const int64_t width = Width(s_);
    float* split = scratch;
    EachStream(i, n, score, scratch,
               [&](int64_t stream, const float* q, const float* w, float* to, float* kernel) {
                 std::fill(split, split + Heads(s_) * 2 * width, 0.0f);
                 for (int64_t h = 0; h < Heads(s_); ++h) {
                   float* of_head = split + h * 2 * width;
                   AddSplitBySign(q + h * width, width, 1, of_head);
                   if (w[h] < 0) std::swap_ranges(of_head, of_head + width, of_head + width);
                 }
                 kernels::IndexScore(split, w, Heads(s_), 2 * width, bounds.At(stream, 0),
                                     DType::kF32, 2 * width * int64_t{sizeof(float)}, nullptr, n,
                                     to, kernel);
               });
  }

 private:
  // What scores of one kind keep of a query: it rounded, or split by sign.
  static int64_t OwnFloats(const AttentionShape& s) { return Heads(s) * 2 * (Width(s) + 4); }
  // Sums score(stream, queries, weights, to) over the streams.
  template <class ScoreOne>
  void EachStream(int64_t i, int64_t n, float* score, float* scratch, ScoreOne&& one) const {
    const int64_t heads = Heads(s_);
    const int64_t width = Width(s_);
    const bool own = s_.index_heads == 0;
    float* kernel = scratch + OwnFloats(s_);
    float* q = kernel + kernels::IndexScratchFloats(heads, 2 * width);
    float* weight = q + heads * width;
    float* part = weight + heads;
    for (int64_t stream = 0; stream < Streams(s_); ++stream) {
      for (int64_t h = 0; h < heads; ++h) {
        const float* from = own ? in_.q.at(i, stream * heads + h) : in_.index.q.at(i, h);
        std::memcpy(q + h * width, from, width * sizeof(float));
        weight[h] = own ? 1.0f : in_.index.weight.row(i)[h];
      }
      one(stream, q, weight, stream == 0 ? score : part, kernel);
      for (int64_t j = 0; j < n && stream > 0; ++j) score[j] += part[j];
    }
  }

  const AttentionShape& s_;
  const AttentionInputs& in_;
  const IntKeys& few_bits_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_SCORE_H_
