#include "sluice/runtime/kernels/packed_gemm/packed_gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/gather/gather.h"
#include "sluice/runtime/kernels/packed_gemm/packed_gemm_reference.h"
#include "sluice/tests/support/normal_values.h"
#include "sluice/tests/support/not_finite.h"

namespace sluice::kernels {
namespace packed_gemm_test {
constexpr int64_t kHeld = 400;  // rows that A's rows are chosen from
constexpr float kUntouched = 7.25f;

struct Shape {
  int64_t m, n, k;
};
constexpr Shape kShapes[] = {{1, 1, 1},     {6, 64, 64},   {7, 65, 63},   {13, 130, 17},
                             {5, 40, 300},  {0, 5, 4},     {3, 4, 0},     {150, 96, 700},
                             {2, 200, 129}, {64, 128, 32}, {11, 70, 1100}};

// A's rows among others, some of them twice; B with rows further apart than they are long.
struct Problem {
  explicit Problem(const Shape& s)
      : shape(s),
        lda(s.k + 3),
        ldb(s.k + 1),
        held(Normal(kHeld * lda, 1)),
        b(Normal(s.n * ldb + 1, 2)),
        packed(static_cast<size_t>(PackedFloats(s.n, s.k)) + 1, NAN),
        weight(Normal(s.m + 1, 3)) {
    for (int64_t j = 0; j < s.m; ++j) ids.push_back(static_cast<int32_t>(j * 37 % kHeld));
    PackRows(b.data(), ldb, s.n, s.k, packed.data());
  }
  RowsAt Chosen() const { return {held.data(), lda, ids.data()}; }
  const float* Row(int64_t j) const { return &held[ids[j] * lda]; }

  Shape shape;
  int64_t lda;
  int64_t ldb;
  std::vector<float> held;
  std::vector<float> b;
  std::vector<float> packed;
  std::vector<float> weight;
  std::vector<int32_t> ids;
};
std::vector<float> Multiply(const Problem& p, int64_t ldc) {
  std::vector<float> c(p.shape.m * ldc + 1, kUntouched);
  GemmPacked(p.Chosen(), p.packed.data(), p.shape.m, p.shape.n, p.shape.k, c.data(), ldc);
  return c;
}

TEST(PackedGemm, AgreesOnRaggedShapesAndWritesNothingElse) {
  ForEachTarget([&](const char* target) {
    for (const Shape& s : kShapes) {
      const Problem p(s);
      const int64_t ldc = s.n + 5;
      const std::vector<float> c = Multiply(p, ldc);
      for (int64_t i = 0; i < s.m; ++i) {
        for (int64_t j = 0; j < ldc; ++j) {
          const double want =
              j < s.n ? ProductReference(p.Row(i), p.b.data(), p.ldb, j, s.k) : kUntouched;
          EXPECT_NEAR(c[i * ldc + j], want, 2e-4)
              << target << " " << s.m << "x" << s.n << "x" << s.k << " at " << i << ", " << j;
        }
      }
      EXPECT_EQ(c[s.m * ldc], kUntouched);
    }
  });
}

// Rows gathered first, one row alone, and rows in calls of three: the same bits.
TEST(PackedGemm, ARowsBitsAreItsOwn) {
  ForEachTarget([&](const char* target) {
    for (const Shape& s : kShapes) {
      const Problem p(s);
      const std::vector<float> c = Multiply(p, s.n);
      std::vector<float> gathered(s.m * s.k + 1);
      GatherRows(p.held.data(), p.lda, p.ids.data(), s.m, s.k, gathered.data());
      for (int64_t step : {int64_t{1}, int64_t{3}, std::max<int64_t>(s.m, 1)}) {
        std::vector<float> parts(c.size(), kUntouched);
        for (int64_t i = 0; i < s.m; i += step)
          GemmPacked({gathered.data() + i * s.k, s.k}, p.packed.data(), std::min(step, s.m - i),
                     s.n, s.k, &parts[i * s.n], s.n);
        EXPECT_EQ(parts, c) << target << " " << s.m << "x" << s.n << "x" << s.k;
      }
    }
  });
}

TEST(PackedGemm, AddingIsMultiplyingAndScattering) {
  ForEachTarget([&](const char* target) {
    for (const Shape& s : kShapes) {
      const Problem p(s);
      const int64_t stride = s.n + 2;
      std::vector<float> out = Normal(kHeld * stride, 4);
      std::vector<float> want = out;
      GemmPackedAdd(p.Chosen(), p.packed.data(), s.m, s.n, s.k, p.ids.data(), p.weight.data(),
                    out.data(), stride);
      const std::vector<float> c = Multiply(p, s.n);
      ScatterAddRows(c.data(), p.ids.data(), p.weight.data(), s.m, s.n, want.data(), stride);
      EXPECT_EQ(out, want) << target << " " << s.m << "x" << s.n << "x" << s.k;
    }
  });
}

TEST(PackedGemm, GatingIsTwoProductsAndTheirGate) {
  ForEachTarget([&](const char* target) {
    for (const Shape& s : kShapes) {
      const Problem p(s);
      const std::vector<float> up = Normal(s.n * s.k + 1, 5);
      std::vector<float> packed_up(static_cast<size_t>(PackedFloats(s.n, s.k)) + 1);
      PackRows(up.data(), s.k, s.n, s.k, packed_up.data());
      const int64_t ldh = s.n + 1;
      std::vector<float> h(s.m * ldh + 1, kUntouched);
      GatedPacked(p.Chosen(), p.packed.data(), packed_up.data(), s.m, s.n, s.k, h.data(), ldh);

      const std::vector<float> gates = Multiply(p, s.n);
      std::vector<float> ups(gates.size());
      GemmPacked(p.Chosen(), packed_up.data(), s.m, s.n, s.k, ups.data(), s.n);
      std::vector<float> want(s.n);
      for (int64_t i = 0; i < s.m; ++i) {
        GateRows(&gates[i * s.n], &ups[i * s.n], s.n, want.data());
        for (int64_t j = 0; j < s.n; ++j) {
          EXPECT_EQ(h[i * ldh + j], want[j]) << target;
          const double gate = ProductReference(p.Row(i), p.b.data(), p.ldb, j, s.k);
          const double exact =
              GatedReference(gate, ProductReference(p.Row(i), up.data(), s.k, j, s.k));
          EXPECT_NEAR(h[i * ldh + j], exact, 1e-5 * (1 + std::abs(exact)) * (1 + std::sqrt(s.k)))
              << target;
        }
        EXPECT_EQ(h[i * ldh + s.n], kUntouched);
      }
    }
  });
}

TEST(PackedGemm, TheGateHoldsAtItsEnds) {
  ForEachTarget([&](const char* target) {
    std::vector<float> z;
    for (float x = -120; x <= 120; x += 0.37f) z.push_back(x);
    const std::vector<float> one(z.size(), 1.0f);
    std::vector<float> y(z.size());
    GateRows(z.data(), one.data(), std::ssize(z), y.data());
    for (size_t i = 0; i < z.size(); ++i) {
      const double want = GatedReference(z[i], 1);
      const double off = 2e-7 * (1 + std::abs(z[i])) * std::abs(want);
      EXPECT_NEAR(y[i], want, off + 1e-35) << target << " " << z[i];
    }
    const float ends[] = {tests::kNan, tests::kInf, 0.0f};
    float out[3];
    GateRows(ends, one.data(), 3, out);
    EXPECT_TRUE(std::isnan(out[0]));
    EXPECT_EQ(out[1], tests::kInf);
    EXPECT_EQ(out[2], 0.0f);
  });
}
}  // namespace packed_gemm_test
}  // namespace sluice::kernels
