#include "sluice/runtime/kernels/rope/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/rope/rope_reference.h"
#include "sluice/runtime/kernels/rope/rope_table.h"
#include "sluice/tests/support/normal_values.h"

namespace sluice::kernels {
namespace rope_test {
TEST(Rope, BothLayoutsAgree) {
  ForEachTarget([&](const char* target) {
    for (RopeLayout layout : {RopeLayout::kInterleaved, RopeLayout::kHalves}) {
      for (int64_t d : {2, 6, 32, 64, 72}) {
        for (double pos : {0.0, 1.0, 16383.0}) {
          std::vector<float> x = Normal(d, 5), c(d / 2), s(d / 2);
          std::vector<double> want(x.begin(), x.end());
          RopeAngles(pos, 1e5, d, c.data(), s.data());
          RopeRotate(x.data(), d, c.data(), s.data(), layout);
          RopeReference(want.data(), d, pos, 1e5, layout);
          for (int64_t i = 0; i < d; ++i) EXPECT_NEAR(x[i], want[i], 1e-5) << target;
        }
      }
    }
  });
}

TEST(RopeTable, TurnsToPositionsAndBack) {
  RopeTable to(RopeTable::Direction::kToPosition);
  RopeTable back(RopeTable::Direction::kBack);
  struct Step {
    int64_t positions, dim;
    double base;
  };
  // More positions, fewer, another width, another base.
  for (const Step& s : {Step{3, 32, 1e4}, {40, 32, 1e4}, {5, 32, 1e4}, {9, 8, 1e4}, {9, 8, 5e5}}) {
    to.Reserve(s.positions, s.dim, s.base);
    back.Reserve(s.positions, s.dim, s.base);
    for (int64_t at : {int64_t{0}, s.positions / 2, s.positions - 1}) {
      const std::vector<float> before = Normal(s.dim, 6);
      std::vector<float> x = before;
      std::vector<double> want(x.begin(), x.end());
      to.Turn(at, x.data());
      RopeReference(want.data(), s.dim, static_cast<double>(at), s.base, RopeLayout::kInterleaved);
      for (int64_t i = 0; i < s.dim; ++i) EXPECT_NEAR(x[i], want[i], 1e-5) << s.dim << " " << at;
      back.Turn(at, x.data());
      for (int64_t i = 0; i < s.dim; ++i) EXPECT_NEAR(x[i], before[i], 1e-5) << s.dim << " " << at;
    }
  }
}
}  // namespace rope_test
}  // namespace sluice::kernels
