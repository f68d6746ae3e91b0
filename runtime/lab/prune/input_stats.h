#ifndef SLUICE_RUNTIME_LAB_PRUNE_INPUT_STATS_H_
#define SLUICE_RUNTIME_LAB_PRUNE_INPUT_STATS_H_
// What pruners of weights are told of a matrix's inputs, gathered as the tokens go by.
#include <cstdint>
#include <vector>

#include "sluice/api/executor.h"
#include "sluice/api/weight_pruner.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
class InputStats {
 public:
  InputStats(int64_t cols, Executor& executor);

  // The tokens that follow are of another sample: a window of the text.
  void BeginSample();
  // x [n, cols], packed. The Gram matrix in fp32, the rest in double. O(n cols^2 / 2).
  void Add(int64_t n, const float* x);
  // Closes the sample. The view lives as long as the object and until more is added. O(cols^2).
  PruneStats Read();

 private:
  static size_t At(int64_t i) { return static_cast<size_t>(i); }

  const int64_t cols_;
  Executor& executor_;
  int64_t tokens_ = 0, of_sample_ = 0;
  std::vector<double> sum_, squares_, within_;  // [cols]; within_: squares about each sample's mean
  std::vector<double> sample_sum_, sample_squares_;
  std::vector<float> gram_;        // [cols, cols], filled right of the panels' diagonal
  std::vector<float> transposed_;  // [cols, n]
  std::vector<float> mean_, sum_squares_, variance_;  // as read
};
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_INPUT_STATS_H_
