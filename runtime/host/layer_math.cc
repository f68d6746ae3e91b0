#include "sluice/runtime/host/layer_math.h"

#include <cblas.h>

#include <cmath>

#include "sluice/runtime/kernels/rms_norm/rms_norm.h"
#include "sluice/runtime/kernels/rope/rope.h"

extern "C" void openblas_set_num_threads(int);

SLUICE_BEGIN_NAMESPACE
namespace host {
LayerMath::LayerMath(const ModelShape& shape, int64_t max_rows, int64_t capacity,
                     Executor* executor)
    : shape_(shape), executor_(executor) {
  openblas_set_num_threads(executor->num_workers());
  const int64_t half = shape.head_dim / 2;
  cos_.resize(static_cast<size_t>(capacity * half));
  sin_.resize(cos_.size());
  for (int64_t p = 0; p < capacity; ++p)
    kernels::RopeAngles(static_cast<double>(p), shape.rope_base, shape.head_dim, &cos_[p * half],
                        &sin_[p * half]);
  gate_up_.resize(static_cast<size_t>(max_rows * 2 * shape.ffn));
  act_.resize(static_cast<size_t>(max_rows * shape.ffn));
}

void LayerMath::Norm(const std::vector<float>& weight, const float* x, int64_t n, float* y) const {
  const size_t width = static_cast<size_t>(shape_.width);
  for (size_t i = 0; i < static_cast<size_t>(n); ++i)
    kernels::RmsNorm(x + i * width, weight.data(), width, shape_.eps, y + i * width);
}

void LayerMath::Rotate(float* x, int64_t heads, int64_t position) const {
  const int64_t d = shape_.head_dim;
  const size_t at = static_cast<size_t>(position * d / 2);
  for (int64_t h = 0; h < heads; ++h)
    kernels::RopeRotate(x + h * d, d, &cos_[at], &sin_[at], kernels::RopeLayout::kInterleaved);
}

void LayerMath::Ffn(const Layer& layer, const float* h, int64_t n, float* y, bool accumulate) {
  const int64_t ffn = shape_.ffn;
  MatMul(h, layer.gate_up.data(), n, shape_.width, 2 * ffn, gate_up_.data());
  executor_->ParallelFor(n, 16, [&](int64_t b, int64_t e, int) {
    for (int64_t i = b; i < e; ++i) {
      const float* gate = &gate_up_[i * 2 * ffn];
      float* act = &act_[i * ffn];
      for (int64_t j = 0; j < ffn; ++j)
        act[j] = gate[j] / (1.0f + std::exp(-gate[j])) * gate[ffn + j];
    }
  });
  MatMul(act_.data(), layer.down.data(), n, ffn, shape_.width, y, accumulate);
}

void LayerMath::Count(int64_t multiply_adds, int64_t weights) {
  counters_.macs += multiply_adds;
  counters_.weight_bytes += weights * static_cast<int64_t>(sizeof(float));
}

void LayerMath::MatMul(const float* x, const float* w, int64_t n, int64_t in, int64_t out, float* y,
                       bool accumulate) {
  const float beta = accumulate ? 1.0f : 0.0f;
  const int rows = static_cast<int>(n);
  const int depth = static_cast<int>(in);
  const int columns = static_cast<int>(out);
  Count(n * in * out, in * out);
  if (n == 1) {
    cblas_sgemv(CblasRowMajor, CblasNoTrans, columns, depth, 1, w, depth, x, 1, beta, y, 1);
  } else {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, columns, depth, 1, x, depth, w,
                depth, beta, y, columns);
  }
}
}  // namespace host
SLUICE_END_NAMESPACE
