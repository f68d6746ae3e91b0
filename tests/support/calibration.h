#ifndef SLUICE_TESTS_SUPPORT_CALIBRATION_H_
#define SLUICE_TESTS_SUPPORT_CALIBRATION_H_
// A matrix and samples of its inputs, as pruners of weights get them and as their references do.
#include <cmath>
#include <vector>

#include "sluice/api/weight_pruner.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
// Inputs whose columns differ in size, lean to one side, differ between samples and are correlated
// with their neighbours.
class Calibration {
 public:
  using Doubles = std::vector<std::vector<double>>;

  Calibration(int64_t rows, int64_t cols, uint64_t seed, double scale = 1)
      : w(RandomFeatures(rows, cols, seed)),
        mean(cols),
        squares(cols),
        variance(cols),
        gram(cols * cols),
        rows_(rows),
        cols_(cols) {
    const std::vector<float> sizes = RandomFeatures(1, cols, seed + 1);
    for (int64_t tokens : {40, 25, 60}) {
      const std::vector<float> x = RandomFeatures(tokens, cols, seed + 2 + tokens);
      Doubles& sample = samples.emplace_back();
      for (int64_t t = 0; t < tokens; ++t) {
        std::vector<double>& token = sample.emplace_back();
        for (int64_t c = 0; c < cols; ++c) {
          const double size = scale * std::exp(static_cast<double>(sizes[c]));
          const double before = c > 0 ? x[t * cols + c - 1] : 0;
          token.push_back(size * (x[t * cols + c] + 0.5 * before + 0.4 + 0.01 * tokens));
        }
      }
    }
    Sum();
  }
  Doubles Weights() const {
    Doubles out;
    for (int64_t r = 0; r < rows_; ++r)
      out.emplace_back(w.begin() + r * cols_, w.begin() + (r + 1) * cols_);
    return out;
  }
  Doubles Gram() const {
    Doubles g(cols_, std::vector<double>(cols_));
    for (int64_t i = 0; i < cols_ * cols_; ++i) g[i / cols_][i % cols_] = gram[i];
    return g;
  }
  PruneInputs Inputs(const PruneTarget& t, const Mask* start = nullptr) const {
    PruneInputs in;
    in.weights = {w.data(), rows_, cols_, cols_};
    in.stats.tokens = tokens;
    in.stats.mean = mean;
    in.stats.sum_squares = squares;
    in.stats.variance = variance;
    in.stats.gram = {gram.data(), cols_, cols_, cols_};
    in.target = t;
    in.start = start;
    return in;
  }

  std::vector<float> w;  // [rows, cols]
  std::vector<float> mean, squares, variance, gram;
  std::vector<Doubles> samples;  // [samples][tokens][cols]
  int64_t tokens = 0;

 private:
  void Sum() {
    for (const Doubles& sample : samples) tokens += static_cast<int64_t>(sample.size());
    const double n = static_cast<double>(tokens);
    for (int64_t i = 0; i < cols_; ++i) {
      double sum = 0;
      double within = 0;
      for (const Doubles& sample : samples) {
        double of_sample = 0;
        for (const auto& token : sample) of_sample += token[i];
        sum += of_sample;
        const double middle = of_sample / static_cast<double>(sample.size());
        for (const auto& token : sample) within += (token[i] - middle) * (token[i] - middle);
      }
      mean[i] = static_cast<float>(sum / n);
      variance[i] = static_cast<float>(within / n);
      for (int64_t j = 0; j < cols_; ++j) {
        double product = 0;
        for (const Doubles& sample : samples) {
          for (const auto& token : sample) product += token[i] * token[j];
        }
        gram[i * cols_ + j] = static_cast<float>(product);
      }
      squares[i] = gram[i * cols_ + i];
    }
  }
  int64_t rows_, cols_;
};
inline std::vector<std::vector<bool>> Kept(const Mask& mask) {
  std::vector<std::vector<bool>> kept(mask.rows(), std::vector<bool>(mask.cols()));
  for (int64_t r = 0; r < mask.rows(); ++r) {
    for (int64_t c = 0; c < mask.cols(); ++c) kept[r][c] = mask.kept(r, c);
  }
  return kept;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_CALIBRATION_H_
