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
#include "sluice/runtime/kernels/rope/rope_table.h"

SLUICE_BEGIN_NAMESPACE
namespace ggml {
// The keys of one layer and sequence, kept as f16.
class KeysBeforeRope {
 public:
  // A view of all of k's rows. Those below `unchanged` were given before and are still the same.
  // back: a table that turns back.
  KvView Update(const KvView& k, int64_t unchanged, const kernels::RopeTable& back,
                Executor& executor) {
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

// out [rows, heads, dim] = the queries at positions from `begin` on; a view of it. back: as above.
inline HeadsView<const float> QueriesBeforeRope(const HeadsView<const float>& q, int64_t begin,
                                                const kernels::RopeTable& back,
                                                std::vector<float>& out) {
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
