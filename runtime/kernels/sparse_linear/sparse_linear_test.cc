#include "sluice/runtime/kernels/sparse_linear/sparse_linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "sluice/runtime/kernels/convert/convert.h"
#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/runtime/kernels/sparse_linear/sparse_linear_reference.h"
#include "sluice/runtime/kernels/sparse_linear/sparse_matrix.h"
#include "sluice/tests/support/normal_values.h"
#include "sluice/tests/support/not_finite.h"

namespace sluice::kernels {
namespace sparse_linear_test {
using testing::HasSubstr;
using tests::kInf;
using tests::kNan;

// Weights that `type` can hold, and which of them stay.
struct Problem {
  int64_t rows, cols;
  std::vector<float> w;
  Mask mask;

  Problem(int64_t r, int64_t c, DType type, unsigned seed)
      : rows(r), cols(c), w(Normal(r * c, seed)), mask(r, c, false) {
    std::vector<uint32_t> raw(w.size() + 1);
    ConvertFromF32(w.data(), r * c, type, raw.data());
    ConvertToF32(raw.data(), type, r * c, w.data());
  }
  // Each with probability `share`.
  Problem& Scatter(double share, unsigned seed) {
    std::mt19937 g(seed);
    std::bernoulli_distribution stays(share);
    for (int64_t i = 0; i < rows * cols; ++i) mask.Set(i / cols, i % cols, stays(g));
    return *this;
  }
  // Up to n of every m.
  Problem& Groups(int64_t n, int64_t m, bool all, unsigned seed) {
    std::mt19937 g(seed);
    for (int64_t i = 0; i < rows * cols; i += m) {
      const int64_t stay = all ? n : static_cast<int64_t>(g() % (n + 1));
      for (int64_t k = 0; k < stay;) {
        const int64_t at = i + static_cast<int64_t>(g() % m);
        if (mask.kept(at / cols, at % cols)) continue;
        mask.Set(at / cols, at % cols, true);
        ++k;
      }
    }
    return *this;
  }
  Problem& Blocks(int64_t h, int64_t v, double share, unsigned seed) {
    std::mt19937 g(seed);
    std::bernoulli_distribution stays(share);
    for (int64_t r = 0; r < rows; r += h) {
      for (int64_t c = 0; c < cols; c += v) {
        const bool stay = stays(g);
        for (int64_t i = 0; i < h * v; ++i) mask.Set(r + i / v, c + i % v, stay);
      }
    }
    return *this;
  }
  MatrixView<const float> View() const { return {w.data(), rows, cols, cols}; }
  std::vector<double> Reference(const std::vector<float>& x, int64_t n) const {
    const auto kept = [&](int64_t r, int64_t c) { return mask.kept(r, c); };
    return SparseLinearReference(w, rows, cols, kept, x, n);
  }
};

// Runs the bodies in pieces of one on threads of their own.
class Threads final : public Executor {
 public:
  explicit Threads(int n) : n_(n) {}
  int num_workers() const override { return n_; }
  void ParallelFor(int64_t n, int64_t, Body body) override {
    std::vector<std::thread> threads;
    for (int t = 0; t < n_; ++t) {
      threads.emplace_back([&, t] {
        for (int64_t i = t; i < n; i += n_) body(i, i + 1, t);
      });
    }
    for (std::thread& t : threads) t.join();
  }

 private:
  int n_;
};

std::vector<float> MatMul(const SparseMatrix& m, const std::vector<float>& x, int64_t n,
                          Executor* executor = nullptr, const std::vector<float>* onto = nullptr) {
  std::vector<float> y = onto != nullptr ? *onto : std::vector<float>(n * m.rows(), kNan);
  OwnedWorkspace memory(m.workspace_bytes(n, executor != nullptr ? executor->num_workers() : 1));
  m.MatMul({x.data(), n, m.cols(), m.cols()}, {y.data(), n, m.rows(), m.rows()}, onto != nullptr,
           {memory.workspace(), executor});
  return y;
}

void ExpectMatMul(const Problem& p, const SparseLayout& layout, const std::string& what) {
  const auto m = SparseMatrix::Pack(p.View(), p.mask, layout);
  ASSERT_TRUE(m.ok()) << what << " " << m.status();
  EXPECT_EQ(m->kept(), p.mask.CountKept());
  for (int64_t n : {1, 2, 3, 4, 7, 8, 17, 40, 64, 65}) {
    const std::vector<float> x = Normal(n * p.cols, 9);
    const std::vector<double> want = p.Reference(x, n);
    const std::vector<float> y = MatMul(*m, x, n);
    const std::vector<float> onto = Normal(n * p.rows, 10);
    const std::vector<float> added = MatMul(*m, x, n, nullptr, &onto);
    for (size_t i = 0; i < y.size(); ++i) {
      ASSERT_NEAR(y[i], want[i], 1e-4) << what << " n=" << n << " output " << i;
      ASSERT_NEAR(added[i], want[i] + onto[i], 1e-4) << what << " n=" << n << " output " << i;
    }
  }
}

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

TEST(SparseLinear, BitmapAgreesWithTheReference) {
  ForEachTarget([](const char* target) {
    for (DType type : kTypes) {
      for (int64_t cols : {1, 15, 16, 63, 64, 65, 100, 200}) {
        for (double share : {0.0, 0.1, 0.5, 1.0}) {
          Problem p(67, cols, type, 1);
          ExpectMatMul(p.Scatter(share, 2), {.type = type},
                       absl::StrCat(target, " ", DTypeName(type), " ", cols, " ", share));
        }
      }
    }
  });
}
TEST(SparseLinear, NofMAgreesWithTheReference) {
  ForEachTarget([](const char* target) {
    for (DType type : kTypes) {
      for (const auto& [n, m] :
           std::vector<std::pair<int64_t, int64_t>>{{2, 4}, {4, 8}, {1, 4}, {1, 1}, {5, 16}}) {
        for (int64_t groups : {1, 3, 16, 21}) {
          for (bool all : {true, false}) {
            Problem p(66, groups * m, type, 3);
            ExpectMatMul(
                p.Groups(n, m, all, 4),
                {.pattern = SparsePattern::kNofM, .type = type, .n = n, .m = m},
                absl::StrCat(target, " ", DTypeName(type), " ", n, ":", m, " ", groups, all));
          }
        }
      }
    }
  });
}
TEST(SparseLinear, BlocksAgreeWithTheReference) {
  ForEachTarget([](const char* target) {
    for (DType type : kTypes) {
      for (const auto& [h, v] : std::vector<std::pair<int64_t, int64_t>>{
               {16, 16}, {1, 16}, {1, 64}, {23, 32}, {7, 48}}) {
        for (double share : {0.0, 0.3, 1.0}) {
          Problem p(h * 9, v * 5, type, 5);
          ExpectMatMul(
              p.Blocks(h, v, share, 6),
              {.pattern = SparsePattern::kBlock, .type = type, .block_rows = h, .block_cols = v},
              absl::StrCat(target, " ", DTypeName(type), " ", h, "x", v, " ", share));
        }
      }
    }
  });
}

TEST(SparseLinear, NothingInGivesZeros) {
  const std::vector<float> none(1);
  for (SparsePattern pattern :
       {SparsePattern::kBitmap, SparsePattern::kNofM, SparsePattern::kBlock}) {
    const auto no_cols = SparseMatrix::Pack({none.data(), 16, 0, 0}, {.pattern = pattern});
    ASSERT_TRUE(no_cols.ok()) << no_cols.status();
    EXPECT_THAT(MatMul(*no_cols, none, 2), testing::Each(0.0f));
    EXPECT_THAT(MatMul(*no_cols, none, 9), testing::Each(0.0f));
    const auto no_rows = SparseMatrix::Pack({none.data(), 0, 16, 16}, {.pattern = pattern});
    ASSERT_TRUE(no_rows.ok()) << no_rows.status();
    EXPECT_TRUE(MatMul(*no_rows, std::vector<float>(9 * 16), 9).empty());
  }
}

// What is kept is multiplied, what is not contributes nothing.
TEST(SparseLinear, KeptWeightsMeetNaNAndDroppedOnesDoNot) {
  ForEachTarget([](const char* target) {
    for (const SparseLayout& layout :
         {SparseLayout{}, SparseLayout{.pattern = SparsePattern::kNofM, .n = 8, .m = 16},
          SparseLayout{.pattern = SparsePattern::kBlock, .block_rows = 1}}) {
      // Row 0 keeps the columns 0 to 7 (a block: 0 to 15), among them a 0 at column 3; row 1 the
      // others of column 16 on, row 2 nothing.
      Problem p(3, 80, DType::kF32, 7);
      const int64_t last = layout.pattern == SparsePattern::kBlock ? 16 : 8;
      for (int64_t c = 0; c < last; ++c) p.mask.Set(0, c, true);
      for (int64_t c = 16; c < 80; c += 16) {
        for (int64_t i = 0; i < last; ++i) p.mask.Set(1, c + i, true);
      }
      p.w[3] = 0;
      p.w[0] = std::abs(p.w[0]) + 1;
      const auto m = SparseMatrix::Pack(p.View(), p.mask, layout);
      ASSERT_TRUE(m.ok()) << m.status();
      for (int64_t n : {1, 2, 4, 9}) {
        const auto with = [&](int64_t column, float value) {
          std::vector<float> x = Normal(n * 80, 8);
          for (int64_t i = 0; i < n; ++i) x[i * 80 + column] = value;
          const std::vector<float> y = MatMul(*m, x, n);
          const std::vector<double> want = p.Reference(x, n);
          for (size_t i = 0; i < y.size(); ++i) {
            EXPECT_EQ(std::isnan(y[i]), std::isnan(want[i])) << target << " " << column << " " << n;
            if (!std::isfinite(want[i])) continue;
            EXPECT_NEAR(y[i], want[i], 1e-4) << target;
          }
          return y;
        };
        EXPECT_TRUE(std::isnan(with(3, kInf)[0]));  // 0 times an infinity
        EXPECT_TRUE(std::isnan(with(3, kNan)[0]));
        EXPECT_EQ(with(0, kInf)[0], kInf);
        EXPECT_EQ(std::isnan(with(72, kNan)[1]), last == 16);  // beside what is kept
        const std::vector<float> y = with(20, kNan);
        EXPECT_TRUE(std::isfinite(y[0]));
        EXPECT_TRUE(std::isnan(y[1]));
        EXPECT_EQ(y[2], 0);
      }
    }
  });
}

TEST(SparseLinear, ZerosOfADenseMatrixGoAndNaNStays) {
  std::vector<float> w(2 * 32);
  w[5] = 2;
  w[7] = -0.0f;
  w[32 + 1] = kNan;
  const MatrixView<const float> view = {w.data(), 2, 32, 32};
  const auto bitmap = SparseMatrix::Pack(view, SparseLayout{});
  ASSERT_TRUE(bitmap.ok());
  EXPECT_EQ(bitmap->kept(), 2);
  EXPECT_DOUBLE_EQ(bitmap->density(), 2.0 / 64);
  std::vector<float> x(32, 1.0f);
  x[7] = kNan;
  EXPECT_EQ(MatMul(*bitmap, x, 1)[0], 2);
  EXPECT_TRUE(std::isnan(MatMul(*bitmap, x, 1)[1]));
  // A block is kept whole: its zeros are weights.
  const auto blocks = SparseMatrix::Pack(view, {.pattern = SparsePattern::kBlock, .block_rows = 1});
  ASSERT_TRUE(blocks.ok());
  EXPECT_EQ(blocks->kept(), 32);
  EXPECT_TRUE(std::isnan(MatMul(*blocks, x, 1)[0]));
}

// The same bits whatever the threads and whatever stands in the other rows of x.
TEST(SparseLinear, BitsDependOnTheRowAlone) {
  Problem p(600, 192, DType::kF32, 11);
  for (const SparseLayout& layout :
       {SparseLayout{}, SparseLayout{.pattern = SparsePattern::kNofM, .n = 2, .m = 4},
        SparseLayout{.pattern = SparsePattern::kBlock, .block_rows = 12}}) {
    if (layout.pattern == SparsePattern::kNofM)
      p.Groups(2, 4, true, 12);
    else
      p.Blocks(12, 16, 0.4, 12);
    const auto m = SparseMatrix::Pack(p.View(), p.mask, layout);
    ASSERT_TRUE(m.ok()) << m.status();
    const std::vector<float> x = Normal(100 * 192, 13);
    for (int64_t n : {7, 100}) {
      const std::vector<float> y = MatMul(*m, x, n);
      for (int threads : {2, 3, 8}) {
        Threads executor(threads);
        EXPECT_EQ(MatMul(*m, x, n, &executor), y) << threads;
      }
      const int64_t fewer = n == 7 ? 1 : 8;
      for (int64_t i = 0; i + fewer <= n; i += fewer) {
        const std::vector<float> own(x.begin() + i * 192, x.begin() + (i + fewer) * 192);
        const std::vector<float> want(y.begin() + i * 600, y.begin() + (i + fewer) * 600);
        EXPECT_EQ(MatMul(*m, own, fewer), want) << i;
      }
    }
    p.mask = Mask(600, 192, false);
  }
}

TEST(SparseLinear, MemoryIsThatOfWhatIsKept) {
  Problem p(64, 1024, DType::kF32, 14);
  p.Groups(2, 4, true, 15);
  const auto bytes = [&](const SparseLayout& l) {
    return SparseMatrix::Pack(p.View(), p.mask, l)->bytes();
  };
  const int64_t weights = 64 * 1024;
  const int64_t padding = kSparsePadding * 4;
  EXPECT_EQ(bytes({.pattern = SparsePattern::kNofM}), weights * 2 + weights / 8 + padding);
  EXPECT_EQ(bytes({}), weights * 2 + weights / 8 + padding + 65 * 8);
  EXPECT_EQ(bytes({.pattern = SparsePattern::kNofM, .type = DType::kBF16}),
            weights + weights / 8 + padding / 2);
}

TEST(SparseLinear, ErrorsSayWhatWasGivenAndAllowed) {
  const Problem p(12, 72, DType::kF32, 16);
  const auto error = [&](const SparseLayout& l) {
    return std::string(SparseMatrix::Pack(p.View(), l).status().message());
  };
  const auto n_of_m = [](int64_t n, int64_t m) {
    return SparseLayout{.pattern = SparsePattern::kNofM, .n = n, .m = m};
  };
  EXPECT_THAT(error(n_of_m(2, 16)), HasSubstr("width 72 is no multiple of M = 16"));
  EXPECT_THAT(error(n_of_m(2, 3)), HasSubstr("2:3; allowed 1 <= N <= M, M a divisor of 16"));
  EXPECT_THAT(error(n_of_m(5, 4)), HasSubstr("5:4; allowed 1 <= N <= M"));
  EXPECT_THAT(error(n_of_m(2, 4)), HasSubstr("row 0 keeps more than 2 of the 4 columns from 0"));
  const auto block = [](int64_t h, int64_t v) {
    return SparseLayout{.pattern = SparsePattern::kBlock, .block_rows = h, .block_cols = v};
  };
  EXPECT_THAT(error(block(4, 8)), HasSubstr("blocks of [4, 8]; allowed at most 64 each way, "
                                            "columns a multiple of 16"));
  EXPECT_THAT(error(block(65, 16)), HasSubstr("blocks of [65, 16]; allowed at most 64"));
  EXPECT_THAT(error(block(4, 16)), HasSubstr("blocks of [4, 16] do not tile [12, 72]"));
  EXPECT_THAT(error({.type = DType::kQ8_0}),
              HasSubstr("values of type q8_0; allowed f32, bf16, f16"));

  const auto masked = [&](MatrixView<const float> w, const Mask& mask, const SparseLayout& l) {
    return std::string(SparseMatrix::Pack(w, mask, l).status().message());
  };
  EXPECT_THAT(masked(p.View(), Mask(12, 71, true), {}),
              HasSubstr("mask [12, 71] for weights [12, 72]"));
  EXPECT_THAT(masked({nullptr, 12, 72, 72}, Mask(12, 72, true), {}), HasSubstr("without data"));
  EXPECT_THAT(masked({p.w.data(), 12, 72, 71}, Mask(12, 72, true), {}),
              HasSubstr("of row stride 71"));
  Mask one_more(12, 72, false);
  for (int64_t c : {68, 69, 71}) one_more.Set(11, c, true);
  EXPECT_THAT(masked(p.View(), one_more, n_of_m(2, 4)),
              HasSubstr("row 11 keeps more than 2 of the 4 columns from 68"));
  EXPECT_THAT(masked(p.View(), one_more, n_of_m(3, 4)), "");
  Mask part(12, 64, true);
  part.Set(7, 40, false);
  EXPECT_THAT(masked({p.w.data(), 12, 64, 72}, part, block(4, 32)),
              HasSubstr("the block at row 4, column 32 keeps 127 of 128 weights"));
}
}  // namespace sparse_linear_test
}  // namespace sluice::kernels
