#ifndef SLUICE_PLUGINS_GGML_BEFORE_ROPE_H_
#define SLUICE_PLUGINS_GGML_BEFORE_ROPE_H_
// Queries and keys from before RoPE, for routers that read them, where the host has only what comes
// after it: a rotation can be undone. A row's position is its place in its sequence; of a host that
// shifted its positions (context shift) all come out turned alike, which changes what learned
// routers choose and not what is computed of it.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "sluice/api/executor.h"
#include "sluice/api/tensor_view.h"
#include "sluice/runtime/kernels/convert/convert.h"
#include "sluice/runtime/kernels/rope/rope.h"

SLUICE_BEGIN_NAMESPACE
namespace ggml {
// Turns vectors of interleaved pairs back; angles are computed once a position.
class BackTurn {
 public:
  void Reserve(int64_t positions, int64_t dim, float base) {
    if (dim != dim_ || base != base_) {
      cosine_.clear();
      sine_.clear();
    }
    dim_ = dim;
    base_ = base;
    const int64_t pairs = dim / 2;
    int64_t known = std::ssize(cosine_) / std::max<int64_t>(1, pairs);
    cosine_.resize(std::max(known, positions) * pairs);
    sine_.resize(cosine_.size());
    for (; known < positions; ++known) {
      float* sine = &sine_[known * pairs];
      kernels::RopeAngles(static_cast<double>(known), base, dim, &cosine_[known * pairs], sine);
      for (int64_t i = 0; i < pairs; ++i) sine[i] = -sine[i];
    }
  }
  // x [dim] of a position below what is reserved.
  void Turn(int64_t position, float* x) const {
    const int64_t at = position * (dim_ / 2);
    kernels::RopeRotate(x, dim_, &cosine_[at], &sine_[at], kernels::RopeLayout::kInterleaved);
  }

 private:
  int64_t dim_ = 0;
  float base_ = 0;
  std::vector<float> cosine_, sine_;  // [positions, dim / 2], of minus the angle
};

// The keys of one layer and sequence, kept as f16.
class KeysBeforeRope {
 public:
  // A view of all of k's rows. Those below `unchanged` were given before and are still the same.
  KvView Update(const KvView& k, int64_t unchanged, const BackTurn& back, Executor& executor) {
    const int64_t row = k.heads * k.dim;
    unchanged = std::min(unchanged, std::ssize(keys_) / row);
    keys_.resize(k.rows * row);
    constexpr int64_t kGrain = 64;
    executor.ParallelFor(k.rows - unchanged, kGrain, [&](int64_t begin, int64_t end, int) {
      std::vector<float> x(k.dim);
      for (int64_t r = unchanged + begin; r < unchanged + end; ++r) {
        for (int64_t h = 0; h < k.heads; ++h) {
          kernels::ConvertToF32(k.at(r, h), k.dtype, k.dim, x.data());
          back.Turn(r, x.data());
          kernels::ConvertFromF32(x.data(), k.dim, DType::kF16, &keys_[r * row + h * k.dim]);
        }
      }
    });
    return {keys_.data(), DType::kF16, k.rows, k.heads, k.dim, row, k.dim};
  }

 private:
  std::vector<uint16_t> keys_;
};

// out [rows, heads, dim] = the queries at positions from `begin` on; a view of it.
inline HeadsView<const float> QueriesBeforeRope(const HeadsView<const float>& q, int64_t begin,
                                                const BackTurn& back, std::vector<float>& out) {
  const int64_t row = q.heads * q.dim;
  out.resize(q.rows * row);
  for (int64_t i = 0; i < q.rows; ++i) {
    for (int64_t h = 0; h < q.heads; ++h) {
      float* x = &out[i * row + h * q.dim];
      std::copy_n(q.at(i, h), q.dim, x);
      back.Turn(begin + i, x);
    }
  }
  return {out.data(), q.rows, q.heads, q.dim, row, q.dim};
}
}  // namespace ggml
SLUICE_END_NAMESPACE
#endif  // SLUICE_PLUGINS_GGML_BEFORE_ROPE_H_
