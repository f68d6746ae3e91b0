#ifndef SLUICE_API_TENSOR_VIEW_H_
#define SLUICE_API_TENSOR_VIEW_H_
#include <cstddef>
#include <cstdint>

#include "sluice/api/dtype.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// Non-owning matrix; the inner stride is 1, strides count elements.
template <class T>
struct MatrixView {
  T* data = nullptr;
  int64_t rows = 0, cols = 0, row_stride = 0;
  bool empty() const { return data == nullptr; }
  T* row(int64_t r) const { return data + r * row_stride; }
};

// Non-owning [rows, heads, dim]; the inner stride is 1, strides count elements.
template <class T>
struct HeadsView {
  HeadsView() = default;
  HeadsView(T* d, int64_t n, int64_t h, int64_t width, int64_t row, int64_t head)
      : data(d), rows(n), heads(h), dim(width), row_stride(row), head_stride(head) {}
  T* data = nullptr;
  DType dtype = DType::kF32;  // laid out like KvView and sluice_view
  int64_t rows = 0, heads = 0, dim = 0, row_stride = 0, head_stride = 0;
  bool empty() const { return data == nullptr; }
  T* at(int64_t row, int64_t head) const { return data + row * row_stride + head * head_stride; }
};

// A key or value cache [rows, heads, dim] of any element type.
struct KvView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0, heads = 0, dim = 0, row_stride = 0, head_stride = 0;
  bool empty() const { return data == nullptr; }
  const std::byte* at(int64_t row, int64_t head) const {
    return static_cast<const std::byte*>(data) +
           DTypeBytes(dtype, row * row_stride + head * head_stride);
  }
  int64_t row_bytes() const { return DTypeBytes(dtype, row_stride); }
  float Get(int64_t row, int64_t head, int64_t i) const {  // for references and tests
    const std::byte* p = at(row, head);
    switch (dtype) {
      case DType::kF32:
        return reinterpret_cast<const float*>(p)[i];
      case DType::kBF16:
        return BF16ToF32(reinterpret_cast<const uint16_t*>(p)[i]);
      case DType::kF16:
        return F16ToF32(reinterpret_cast<const uint16_t*>(p)[i]);
      case DType::kI8:
        return static_cast<float>(reinterpret_cast<const int8_t*>(p)[i]);
      case DType::kQ8_0:
        return Q8ToF32(p, i);
      case DType::kQ4_0:
        return Q4ToF32(p, i);
    }
    return 0;
  }
};
inline KvView AsKv(const HeadsView<const float>& v) {
  return {v.data, DType::kF32, v.rows, v.heads, v.dim, v.row_stride, v.head_stride};
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_TENSOR_VIEW_H_
