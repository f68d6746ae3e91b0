#ifndef SLUICE_RUNTIME_KERNELS_ROPE_ROPE_TABLE_H_
#define SLUICE_RUNTIME_KERNELS_ROPE_ROPE_TABLE_H_
#include <algorithm>
#include <cstdint>
#include <vector>

#include "sluice/runtime/kernels/rope/rope.h"

namespace sluice::kernels {
// Turns vectors of one width to their positions and back. Angles are computed once a position;
// memory: 4 dim bytes a position.
class RopeTable {
 public:
  enum class Direction : uint8_t { kToPosition, kBack };
  explicit RopeTable(Direction direction) : direction_(direction) {}

  // Positions [0, positions) of vectors [dim], dim even, can be turned from here on. Another width
  // or base forgets the positions before; fewer positions than before forget none.
  void Reserve(int64_t positions, int64_t dim, double base) {
    if (dim != dim_ || base != base_) {
      cos_.clear();
      sin_.clear();
    }
    dim_ = dim;
    base_ = base;
    const int64_t pairs = dim / 2;
    int64_t known = std::ssize(cos_) / std::max<int64_t>(1, pairs);
    cos_.resize(std::max(known, positions) * pairs);
    sin_.resize(cos_.size());
    for (; known < positions; ++known) {
      float* sin = &sin_[known * pairs];
      RopeAngles(static_cast<double>(known), base, dim, &cos_[known * pairs], sin);
      if (direction_ == Direction::kToPosition) continue;
      for (int64_t i = 0; i < pairs; ++i) sin[i] = -sin[i];
    }
  }
  // x [dim], interleaved pairs, of a position that is reserved.
  void Turn(int64_t position, float* x) const {
    const int64_t at = position * (dim_ / 2);
    RopeRotate(x, dim_, &cos_[at], &sin_[at], RopeLayout::kInterleaved);
  }

 private:
  Direction direction_;
  int64_t dim_ = 0;
  double base_ = 0;
  std::vector<float> cos_, sin_;  // [positions, dim / 2]
};
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_ROPE_ROPE_TABLE_H_
