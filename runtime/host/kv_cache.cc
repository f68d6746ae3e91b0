#include "sluice/runtime/host/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "sluice/runtime/kernels/attention_panel/attention_panel.h"
#include "sluice/runtime/kernels/convert/convert.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
KvCache::KvCache(const ModelShape& shape, DType dtype, int64_t capacity, bool before_rope)
    : kv_heads_(shape.kv_heads), dim_(shape.head_dim), capacity_(capacity), dtype_(dtype) {
  if (before_rope) k_before_.resize(static_cast<size_t>(capacity * kv_heads_ * dim_));
}

void KvCache::Begin() {
  k_.resize(static_cast<size_t>(capacity_) * row_bytes());
  v_.resize(k_.size());
}

void KvCache::Clear() {
  rows_ = 0;
  missing_ = 0;
  hidden_.clear();
}

void KvCache::Append(const float* k, const float* v, int64_t stride, int64_t begin, int64_t n) {
  const size_t width = static_cast<size_t>(kv_heads_ * dim_);
  for (int64_t i = 0; i < n; ++i) {
    const size_t at = static_cast<size_t>(begin + i - missing_) * row_bytes();
    kernels::ConvertFromF32(k + i * stride, width, dtype_, k_.data() + at);
    kernels::ConvertFromF32(v + i * stride, width, dtype_, v_.data() + at);
  }
  rows_ = begin + n - missing_;
}

void KvCache::KeepBeforeRope(const float* k, int64_t token) {
  const int64_t width = kv_heads_ * dim_;
  std::copy(k, k + width, k_before_.begin() + (token - missing_) * width);
}

void KvCache::Hide(int64_t token, bool hide) {
  const size_t row = static_cast<size_t>(token - missing_);
  hidden_.resize(std::max(hidden_.size(), row + 1));
  hidden_[row] = hide ? -std::numeric_limits<float>::infinity() : 0.0f;
}

void KvCache::WriteBias(std::vector<float>& bias) const {
  bias.clear();
  for (int64_t h = 0; h < kv_heads_; ++h)
    bias.insert(bias.end(), hidden_.begin(), hidden_.begin() + rows_);
}

void KvCache::Evict(int64_t first, int64_t last, int64_t step) {
  constexpr int64_t kPanel = static_cast<int64_t>(kernels::kPanelKeys);
  const int64_t gone = (rows_ - first - last - 1) / kPanel * kPanel;
  if (gone <= 0 || (gone < last && missing_ > 0)) return;

  const size_t row = row_bytes();
  const size_t head = static_cast<size_t>(first) * row;
  const size_t kept = static_cast<size_t>(rows_ - first - gone) * row;
  const size_t room = head + static_cast<size_t>(2 * last + 2 * kPanel + step) * row;
  for (std::vector<std::byte>* x : {&k_, &v_}) {
    const std::byte* from = x->data() + head + static_cast<size_t>(gone) * row;
    if (x->size() <= room) {
      std::memmove(x->data() + head, from, kept);
    } else {
      std::vector<std::byte> small(room);
      std::memcpy(small.data(), x->data(), head);
      std::memcpy(small.data() + head, from, kept);
      x->swap(small);
    }
  }
  missing_ += gone;
  rows_ -= gone;
}
}  // namespace host
SLUICE_END_NAMESPACE
