#ifndef SLUICE_RUNTIME_HOST_KV_CACHE_H_
#define SLUICE_RUNTIME_HOST_KV_CACHE_H_
// Keys and values of one layer of one sequence, one row a token that the layer computed.
#include <cstddef>
#include <vector>

#include "sluice/api/attention_plan.h"
#include "sluice/runtime/host/model.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
class KvCache {
 public:
  // `before_rope`: keeps keys as they are before RoPE too, for routers that summarise those.
  KvCache(const ModelShape& shape, DType dtype, int64_t capacity, bool before_rope);

  // Memory for `capacity` tokens of a new sequence.
  void Begin();
  void Clear();

  int64_t rows() const { return rows_; }
  // Tokens of the sequence that have no row: evicted, or never computed by this layer.
  int64_t missing() const { return missing_; }
  void set_missing(int64_t tokens) { missing_ = tokens; }

  // Keys and values [n, kv_heads * head_dim], rows `stride` apart, of tokens [begin, begin + n).
  void Append(const float* k, const float* v, int64_t stride, int64_t begin, int64_t n);
  void KeepBeforeRope(const float* k, int64_t token);

  // Drops what lies between the first `first` and the last `last` rows, and after a prompt the
  // memory too. It waits until `last` rows can go, so that moving the rest costs about one row a
  // token. Whole panels go and one key stays between the two: then the executor cuts the same
  // panels as without eviction, and the output keeps its bits. `step`: tokens of one feed.
  void Evict(int64_t first, int64_t last, int64_t step);

  KvView keys() const { return View(k_.data(), dtype_); }
  KvView values() const { return View(v_.data(), dtype_); }
  KvView keys_before_rope() const { return View(k_before_.data(), DType::kF32); }
  // Hides a token's key from all later tokens, or not.
  void Hide(int64_t token, bool hide);
  // [kv_heads, rows] to add to the logits: -inf for hidden keys, 0 for the others.
  void WriteBias(std::vector<float>& bias) const;

 private:
  KvView View(const void* data, DType dtype) const {
    const int64_t width = kv_heads_ * dim_;
    return {data, dtype, rows_, kv_heads_, dim_, width, dim_};
  }
  size_t row_bytes() const { return static_cast<size_t>(DTypeBytes(dtype_, kv_heads_ * dim_)); }

  int64_t kv_heads_, dim_, capacity_;
  DType dtype_;
  int64_t rows_ = 0;
  int64_t missing_ = 0;
  std::vector<std::byte> k_, v_;
  std::vector<float> k_before_;
  std::vector<float> hidden_;  // per row: 0 or -inf
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_KV_CACHE_H_
