#include "sluice/runtime/lab/prune/input_stats.h"

#include <algorithm>

#include "sluice/runtime/kernels/gemm/gemm.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
// Rows of the Gram matrix that are computed together, whatever the number of threads.
constexpr int64_t kPanel = 64;
}  // namespace

InputStats::InputStats(int64_t cols, Executor& executor)
    : cols_(cols),
      executor_(executor),
      sum_(At(cols)),
      squares_(At(cols)),
      within_(At(cols)),
      sample_sum_(At(cols)),
      sample_squares_(At(cols)),
      gram_(At(cols * cols)) {}

void InputStats::BeginSample() {
  const double n = static_cast<double>(of_sample_);
  for (size_t c = 0; c < sum_.size(); ++c) {
    sum_[c] += sample_sum_[c];
    squares_[c] += sample_squares_[c];
    if (of_sample_ > 0)
      within_[c] += std::max(0.0, sample_squares_[c] - sample_sum_[c] * sample_sum_[c] / n);
    sample_sum_[c] = 0;
    sample_squares_[c] = 0;
  }
  of_sample_ = 0;
}

void InputStats::Add(int64_t n, const float* x) {
  tokens_ += n;
  of_sample_ += n;
  transposed_.resize(At(cols_ * n));
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t c = 0; c < cols_; ++c) {
      const float v = x[t * cols_ + c];
      transposed_[At(c * n + t)] = v;
      sample_sum_[At(c)] += static_cast<double>(v);
      sample_squares_[At(c)] += static_cast<double>(v) * static_cast<double>(v);
    }
  }

  executor_.ParallelFor((cols_ + kPanel - 1) / kPanel, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> scratch(At(kernels::GemmScratchFloats(n)));
    std::vector<float> product(At(kPanel * cols_));
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * kPanel;
      const int64_t rows = std::min(kPanel, cols_ - first);
      const int64_t right = cols_ - first;
      const float* from = transposed_.data() + first * n;
      kernels::GemmNT(from, n, from, n, rows, right, n, product.data(), right, scratch.data());
      for (int64_t r = 0; r < rows; ++r) {
        float* to = &gram_[At((first + r) * cols_ + first)];
        for (int64_t c = 0; c < right; ++c) to[c] += product[At(r * right + c)];
      }
    }
  });
}

PruneStats InputStats::Read() {
  BeginSample();
  const double n = static_cast<double>(std::max<int64_t>(1, tokens_));
  mean_.clear();
  sum_squares_.clear();
  variance_.clear();
  for (size_t c = 0; c < sum_.size(); ++c) {
    mean_.push_back(static_cast<float>(sum_[c] / n));
    sum_squares_.push_back(static_cast<float>(squares_[c]));
    variance_.push_back(static_cast<float>(within_[c] / n));
  }
  for (int64_t i = 0; i < cols_; ++i) {
    for (int64_t j = 0; j < i; ++j) gram_[At(i * cols_ + j)] = gram_[At(j * cols_ + i)];
  }
  PruneStats s;
  s.tokens = tokens_;
  s.mean = mean_;
  s.sum_squares = sum_squares_;
  s.variance = variance_;
  s.gram = {gram_.data(), cols_, cols_, cols_};
  return s;
}
}  // namespace lab
SLUICE_END_NAMESPACE
