#include "sluice/runtime/host/layer_math.h"

#include <oneapi/dnnl/dnnl.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "sluice/runtime/kernels/dot/dot.h"
#include "sluice/runtime/kernels/rms_norm/rms_norm.h"

// Of the OpenMP that oneDNN calls; settings of the calling thread.
extern "C" int omp_get_max_threads();
extern "C" void omp_set_num_threads(int);

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace {
// A product is cut into pieces of these sizes, whatever the number of threads, so that its bits do
// not depend on it.
constexpr int64_t kRowPiece = 128;
constexpr int64_t kColumnPiece = 256;

// y [rows, columns] = x [rows, depth] W^T (+ y), y of `stride` columns, on the calling thread.
void MatMulPiece(const float* x, const float* w, int64_t rows, int64_t columns, int64_t depth,
                 float* y, int64_t stride, bool accumulate) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);  // the executor has the threads
  const dnnl_status_t status = dnnl_sgemm('N', 'T', rows, columns, depth, 1, x, depth, w, depth,
                                          accumulate ? 1.0f : 0.0f, y, stride);
  omp_set_num_threads(before);
  if (status != dnnl_success) {  // it only fails where memory for its copies is refused
    std::fprintf(stderr, "oneDNN cannot multiply %lld x %lld x %lld (status %d)\n",
                 static_cast<long long>(rows), static_cast<long long>(columns),
                 static_cast<long long>(depth), static_cast<int>(status));
    std::abort();
  }
}
}  // namespace

LayerMath::LayerMath(const ModelShape& shape, int64_t max_rows, int64_t capacity,
                     Executor* executor, SparseWeights sparse)
    : shape_(shape),
      executor_(executor),
      sparse_(std::move(sparse)),
      panels_(sparse_.workspace_bytes(max_rows, executor->num_workers())) {
  rope_.Reserve(capacity, shape.head_dim, shape.rope_base);
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
  for (int64_t h = 0; h < heads; ++h) rope_.Turn(position, x + h * d);
}

void LayerMath::Ffn(const Layer& layer, int64_t expert, const float* h, int64_t n, float* y,
                    bool accumulate) {
  const int64_t ffn = shape_.ffn;
  MatMul(h, layer.GateUp(shape_, expert), n, shape_.width, 2 * ffn, gate_up_.data());
  executor_->ParallelFor(n, 16, [&](int64_t b, int64_t e, int) {
    for (int64_t i = b; i < e; ++i) {
      const float* gate = &gate_up_[i * 2 * ffn];
      float* act = &act_[i * ffn];
      if (shape_.activation == Activation::kRelu) {
        for (int64_t j = 0; j < ffn; ++j) act[j] = std::max(gate[j], 0.0f) * gate[ffn + j];
        continue;
      }
      for (int64_t j = 0; j < ffn; ++j)
        act[j] = gate[j] / (1.0f + std::exp(-gate[j])) * gate[ffn + j];
    }
  });
  MatMul(act_.data(), layer.Down(shape_, expert), n, ffn, shape_.width, y, accumulate);
}

void LayerMath::Count(int64_t multiply_adds, int64_t weights) {
  counters_.macs += multiply_adds;
  counters_.weight_bytes += weights * static_cast<int64_t>(sizeof(float));
}

void LayerMath::MatMul(const float* x, const float* w, int64_t n, int64_t in, int64_t out, float* y,
                       bool accumulate) {
  if (const SparseMatrix* packed = sparse_.Find(w, out, n); packed != nullptr) {
    counters_.macs += n * packed->kept();
    counters_.weight_bytes += packed->bytes();
    packed->MatMul({x, n, in, in}, {y, n, out, out}, accumulate, {panels_.workspace(), executor_});
    return;
  }
  Count(n * in * out, in * out);
  if (n == 1) {
    executor_->ParallelFor(out, kColumnPiece, [&](int64_t begin, int64_t end, int) {
      for (int64_t o = begin; o < end; ++o) {
        const float dot = kernels::Dot(x, w + o * in, DType::kF32, in);
        y[o] = accumulate ? y[o] + dot : dot;
      }
    });
    return;
  }
  const int64_t across = (out + kColumnPiece - 1) / kColumnPiece;
  const int64_t pieces = across * ((n + kRowPiece - 1) / kRowPiece);
  executor_->ParallelFor(pieces, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / across * kRowPiece;
      const int64_t column = i % across * kColumnPiece;
      MatMulPiece(x + row * in, w + column * in, std::min(kRowPiece, n - row),
                  std::min(kColumnPiece, out - column), in, y + row * out + column, out,
                  accumulate);
    }
  });
}
}  // namespace host
SLUICE_END_NAMESPACE
