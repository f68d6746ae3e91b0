#ifndef SLUICE_ROUTERS_EXPERT_SPT_CLUSTERS_H_
#define SLUICE_ROUTERS_EXPERT_SPT_CLUSTERS_H_
// Which hidden neurons of a dense feed-forward network make a block. SPT (arXiv 2312.10365) cuts
// them as they stand; neurons that are active for the same tokens belong together, so that a token
// needs few blocks ("moefication", ours here). Double precision; offline.
//
//   PREP   f_j = |h_j(t)| over calibration tokens t, centred and of length 1: the product of two
//          neurons' features is how their activity correlates
//   PERM   k-means over f with blocks of equal size: centroids, farthest first; then in turns the
//          pairs of neuron and centroid, the most alike first, fill the blocks, and a centroid
//          becomes the mean of its block
//
// The dense network's function does not depend on the order of its neurons: the hidden activations
// keep their bits, the output is the same sum in another order.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/tensor_view.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
class NeuronClusters {
 public:
  // activity [tokens, neurons]: the hidden activations, what the second matrix is multiplied with.
  // Returns the order [neurons]: the neurons of block 0, rising, then those of block 1, and so on.
  // A neuron that never varies is alike to nothing and fills what is left; ties go to the lowest
  // neuron, then the lowest block. Errors: blocks that do not divide the neurons, fewer than two
  // tokens, turns below 1, activity that is not finite.
  // O(turns neurons blocks (tokens + log(neurons blocks))), and a double each of `activity`.
  static absl::StatusOr<std::vector<int32_t>> Order(MatrixView<const float> activity,
                                                    int64_t blocks, int64_t turns = 20) {
    if (blocks < 1 || activity.cols % blocks != 0)
      return absl::InvalidArgumentError(absl::StrCat(blocks, " blocks of ", activity.cols,
                                                     " neurons; allowed: a divisor of them"));
    if (activity.rows < 2 || turns < 1)
      return absl::InvalidArgumentError(
          absl::StrCat(activity.rows, " tokens and ", turns, " turns; allowed: from 2 and from 1"));
    NeuronClusters c(activity, blocks);
    if (absl::Status s = c.ReadFeatures(activity); !s.ok()) return s;
    c.PlaceCentroids();
    for (int64_t turn = 0; turn < turns && c.Assign(); ++turn) c.MoveCentroids();
    return c.InOrder();
  }

 private:
  NeuronClusters(MatrixView<const float> activity, int64_t blocks)
      : tokens_(activity.rows),
        neurons_(activity.cols),
        blocks_(blocks),
        feature_(static_cast<size_t>(neurons_ * tokens_)),
        centroid_(static_cast<size_t>(blocks * tokens_)),
        block_(static_cast<size_t>(neurons_), -1) {}

  double* Feature(int64_t neuron) { return &feature_[neuron * tokens_]; }
  double* Centroid(int64_t block) { return &centroid_[block * tokens_]; }
  double Product(const double* a, const double* b) const {
    return std::inner_product(a, a + tokens_, b, 0.0);
  }

  absl::Status ReadFeatures(MatrixView<const float> activity) {
    for (int64_t t = 0; t < tokens_; ++t) {
      for (int64_t j = 0; j < neurons_; ++j) {
        const float h = activity.row(t)[j];
        if (!std::isfinite(h))
          return absl::InvalidArgumentError(
              absl::StrCat("the activation of neuron ", j, " at token ", t, " is not finite"));
        Feature(j)[t] = std::abs(static_cast<double>(h));
      }
    }
    for (int64_t j = 0; j < neurons_; ++j) Normalise(Feature(j));
    return absl::OkStatus();
  }
  // Zeros where nothing varies but by rounding.
  void Normalise(double* f) const {
    const double whole = std::sqrt(Product(f, f));
    const double mean = std::accumulate(f, f + tokens_, 0.0) / static_cast<double>(tokens_);
    for (int64_t t = 0; t < tokens_; ++t) f[t] -= mean;
    const double length = std::sqrt(Product(f, f));
    constexpr double kRounding = 1e-12;
    const bool varies = length > kRounding * whole;
    for (int64_t t = 0; t < tokens_; ++t) f[t] = varies ? f[t] / length : 0;
  }

  // The first is neuron 0; every next is the neuron that is least alike to the nearest before it.
  void PlaceCentroids() {
    std::vector<double> nearest(static_cast<size_t>(neurons_), -2);
    int64_t next = 0;
    for (int64_t b = 0; b < blocks_; ++b) {
      std::copy_n(Feature(next), tokens_, Centroid(b));
      for (int64_t j = 0; j < neurons_; ++j)
        nearest[j] = std::max(nearest[j], Product(Feature(j), Centroid(b)));
      next = std::min_element(nearest.begin(), nearest.end()) - nearest.begin();
    }
  }

  // Whether a neuron changed its block.
  bool Assign() {
    struct Pair {
      double alike;
      int32_t neuron, block;
    };
    std::vector<Pair> pairs;
    pairs.reserve(static_cast<size_t>(neurons_ * blocks_));
    for (int32_t j = 0; j < neurons_; ++j) {
      for (int32_t b = 0; b < blocks_; ++b)
        pairs.push_back({Product(Feature(j), Centroid(b)), j, b});
    }
    std::stable_sort(pairs.begin(), pairs.end(),
                     [](const Pair& a, const Pair& b) { return a.alike > b.alike; });

    const std::vector<int32_t> before = block_;
    std::fill(block_.begin(), block_.end(), -1);
    std::vector<int64_t> room(static_cast<size_t>(blocks_), neurons_ / blocks_);
    for (const Pair& p : pairs) {
      if (block_[p.neuron] >= 0 || room[p.block] == 0) continue;
      block_[p.neuron] = p.block;
      --room[p.block];
    }
    return block_ != before;
  }
  void MoveCentroids() {
    std::fill(centroid_.begin(), centroid_.end(), 0.0);
    for (int64_t j = 0; j < neurons_; ++j) {
      double* centroid = Centroid(block_[j]);
      for (int64_t t = 0; t < tokens_; ++t) centroid[t] += Feature(j)[t];
    }
    for (int64_t b = 0; b < blocks_; ++b) Normalise(Centroid(b));
  }

  std::vector<int32_t> InOrder() const {
    std::vector<int32_t> order(static_cast<size_t>(neurons_));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return block_[a] < block_[b]; });
    return order;
  }

  int64_t tokens_, neurons_, blocks_;
  std::vector<double> feature_;   // [neurons, tokens]
  std::vector<double> centroid_;  // [blocks, tokens]
  std::vector<int32_t> block_;    // of a neuron
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_SPT_CLUSTERS_H_
