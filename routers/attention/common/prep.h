#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_PREP_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_PREP_H_
// PREP: views of queries and keys to score with.
#include <cmath>
#include <cstring>

#include "sluice/routers/attention/common/plan.h"
#include "sluice/runtime/kernels/convert/convert.h"
#include "sluice/runtime/kernels/pool/pool.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
// Copies rows of a query head, each multiplied by `scale`, into out [count, d].
inline void ScaledQueries(const HeadsView<const float>& q, TileRows rows, int64_t head, float scale,
                          float* out, int64_t every = 1) {
  for (int64_t i = 0; i < rows.count; i += every) {
    const float* from = q.at(rows.begin + i, head);
    for (int64_t x = 0; x < q.dim; ++x) out[x] = from[x] * scale;
    out += q.dim;
  }
}

// out [2, d] += q * scale, its positive elements in the first row and its negative ones in the
// second: what multiplies the maxima and minima of BlockBounds.
inline void AddSplitBySign(const float* q, int64_t d, float scale, float* out) {
  for (int64_t x = 0; x < d; ++x) {
    const float e = q[x] * scale;
    out[x] += std::max(e, 0.0f);
    out[d + x] += std::min(e, 0.0f);
  }
}

// The mean query of a tile, times scale.
inline void MeanQuery(const HeadsView<const float>& q, TileRows rows, int64_t head, float scale,
                      float* out) {
  kernels::Pool(kernels::PoolKind::kMean, q.at(rows.begin, head), DType::kF32, q.row_stride,
                rows.count, q.dim, out);
  for (int64_t x = 0; x < q.dim; ++x) out[x] *= scale;
}

// Keys [begin, begin + n) of a KV head as floats [n, d].
inline void KeysAsFloat(const KvView& k, int64_t kv, int64_t begin, int64_t n, float* out) {
  for (int64_t j = 0; j < n; ++j)
    kernels::ConvertToF32(k.at(begin + j, kv), k.dtype, k.dim, out + j * k.dim);
}

// x [n, d] -= mean [d]: removing one vector from all keys shifts all logits of a query alike.
inline void SubtractMean(float* x, int64_t n, int64_t d, const float* mean) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < d; ++i) x[j * d + i] -= mean[i];
  }
}

// How far RoPE turns pair i of a vector of width d at a position; by minus the position, back. A
// base of 0 turns nothing.
struct PairTurn {
  float cosine, sine;
};
inline PairTurn TurnOfPair(int64_t i, int64_t d, int64_t position, float base) {
  if (base <= 0) return {1, 0};
  const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(d);
  const double angle =
      static_cast<double>(position) * std::pow(static_cast<double>(base), exponent);
  return {static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
}
inline void TurnPair(PairTurn turn, float* x) {
  const float a = x[0];
  const float b = x[1];
  x[0] = a * turn.cosine - b * turn.sine;
  x[1] = a * turn.sine + b * turn.cosine;
}
// Turns a vector of interleaved pairs, as GGUF Llama files store them, to a position.
inline void RotateTo(float* x, int64_t d, int64_t position, float base) {
  if (base <= 0) return;
  for (int64_t i = 0; i < d / 2; ++i) TurnPair(TurnOfPair(i, d, position, base), x + 2 * i);
}
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_PREP_H_
