#include "sluice/plugins/ggml/mask.h"

#include <gtest/gtest.h>

#include <functional>

#include "sluice/api/dtype.h"

SLUICE_BEGIN_NAMESPACE
namespace ggml {
namespace mask_test {
using Kind = MaskShape::Kind;
constexpr uint16_t kHidden = 0xFC00;

struct Matrix {
  int64_t n_q, n_kv;
  std::vector<uint16_t> x = std::vector<uint16_t>(static_cast<size_t>(n_q * n_kv), kHidden);
  void Show(const std::function<bool(int64_t q, int64_t k)>& visible) {
    for (int64_t i = 0; i < n_q; ++i) {
      for (int64_t k = 0; k < n_kv; ++k) x[i * n_kv + k] = visible(i, k) ? 0 : kHidden;
    }
  }
  MaskShape shape() const { return ReadMask(x.data(), n_kv, n_q, n_kv); }
  const MaskPlan& plan(int64_t group = 4) {
    made.Make(shape(), x.data(), n_kv, n_q, n_kv, group);
    return made;
  }
  MaskPlan made;
};

TEST(ReadMask, KnowsWhatItIs) {
  Matrix c{5, 77};
  const auto kind = [&] { return c.shape(); };
  c.Show([](int64_t i, int64_t k) { return k <= 35 + i; });
  EXPECT_EQ(kind().kind, Kind::kCausal);
  EXPECT_EQ(kind().first, 35);
  c.Show([](int64_t i, int64_t k) { return k <= 35 + i && k > 35 + i - 8; });
  EXPECT_EQ(kind().kind, Kind::kWindow);
  EXPECT_EQ(kind().window, 8);
  c.Show([](int64_t i, int64_t k) {
    return k <= 3 + i && k > 3 + i - 6;
  });  // the window fills up on the way
  EXPECT_EQ(kind().kind, Kind::kWindow);
  EXPECT_EQ(kind().window, 6);
  c.Show([](int64_t i, int64_t k) {
    return k <= 35 + i && k != 7;
  });  // another sequence's cell in between
  EXPECT_EQ(kind().kind, Kind::kRuns);
  c.Show([](int64_t i, int64_t k) { return k <= 20 + 2 * i; });
  EXPECT_EQ(kind().kind, Kind::kRuns);
  c.Show([](int64_t, int64_t) { return false; });
  EXPECT_EQ(kind().kind, Kind::kRuns);
  c.x[3] = F32ToF16(-1);
  EXPECT_EQ(kind().kind, Kind::kValues);
  c.x[3] = 0x8000;  // -0
  EXPECT_EQ(kind().kind, Kind::kRuns);
  c.x[76] = 1;  // the least number, in the row's last place
  EXPECT_EQ(kind().kind, Kind::kValues);
  EXPECT_EQ(ReadMask(nullptr, 0, 5, 40).kind, Kind::kAll);
}

TEST(ReadSequences, FindsThoseWhoseKeysGrowByOne) {
  Matrix m{7, 100};
  // Rows 0 to 2: the first sequence, in even cells. Row 3: a step of the second, in odd cells. Rows
  // 4 and 5: the third, one cell after the other. Row 6 sees nothing.
  m.Show([](int64_t i, int64_t k) {
    if (i < 3) return k % 2 == 0 && k <= 20 + 2 * i;
    if (i == 3) return k % 2 == 1 && k < 60;
    return i < 6 && k >= 70 && k <= 80 + i;
  });
  std::vector<MaskSequence> all(1);
  all[0].cells = {1, 2, 3};  // of another pass
  ASSERT_EQ(ReadSequences(m.x.data(), m.n_kv, m.n_q, m.n_kv, all), 4);
  const auto expect = [&](size_t i, int64_t row, int64_t rows, int64_t first, int64_t step,
                          int64_t count) {
    EXPECT_EQ(all[i].row, row) << i;
    EXPECT_EQ(all[i].rows, rows) << i;
    ASSERT_EQ(std::ssize(all[i].cells), count) << i;
    for (int64_t c = 0; c < count; ++c) EXPECT_EQ(all[i].cells[c], first + step * c) << i;
    EXPECT_EQ(all[i].contiguous(), count > 0 && step == 1) << i;
  };
  expect(0, 0, 3, 0, 2, 13);
  expect(1, 3, 1, 1, 2, 30);
  expect(2, 4, 2, 70, 1, 16);
  expect(3, 6, 1, 0, 0, 0);

  const auto rows = [&](const std::function<bool(int64_t, int64_t)>& visible) {
    Matrix two{2, 40};
    two.Show(visible);
    return ReadSequences(two.x.data(), two.n_kv, two.n_q, two.n_kv, all) == 1 ? all[0].rows : 1;
  };
  EXPECT_EQ(rows([](int64_t i, int64_t k) { return k < 9 + i; }), 2);
  EXPECT_EQ(rows([](int64_t i, int64_t k) { return k < 9 || (i == 1 && k == 30); }), 2);
  EXPECT_EQ(rows([](int64_t, int64_t k) { return k < 9; }), 1);                  // nothing more
  EXPECT_EQ(rows([](int64_t i, int64_t k) { return k < 9 + 2 * i; }), 1);        // two more
  EXPECT_EQ(rows([](int64_t i, int64_t k) { return k < 9 - i; }), 1);            // one less
  EXPECT_EQ(rows([](int64_t i, int64_t k) { return k < 9 + i && k >= i; }), 1);  // a window
  EXPECT_EQ(rows([](int64_t i, int64_t k) { return (k > 2 && k < 9) || (i == 1 && k == 1); }),
            1);  // an earlier cell
  Matrix biased{1, 40};
  biased.Show([](int64_t, int64_t k) { return k < 9; });
  biased.x[3] = F32ToF16(-1);
  ASSERT_EQ(ReadSequences(biased.x.data(), 40, 1, 40, all), 1);
  EXPECT_TRUE(all[0].cells.empty());
}

// Every visible pair lies in the lists, once; pairs that the mask must hide only where it is asked.
void ExpectCovers(const Matrix& m, const MaskPlan& plan) {
  const AttentionBranch b = plan.branch();
  for (int64_t i = 0; i < m.n_q; ++i) {
    const int64_t t = i / b.tile;
    std::vector<int> listed(m.n_kv);
    for (uint32_t e = 0; e < b.rows.count[t]; ++e) {
      if (b.encoding == Encoding::kTokens) {
        ++listed[b.tokens[b.rows.begin[t] + e]];
        continue;
      }
      const PlanEntry& entry = b.entries[b.rows.begin[t] + e];
      for (uint32_t k = entry.start; k < entry.start + entry.len; ++k) ++listed[k];
    }
    for (int64_t k = 0; k < m.n_kv; ++k) {
      EXPECT_LE(listed[k], 1) << i << ", " << k;
      if (m.x[i * m.n_kv + k] != kHidden) {
        EXPECT_EQ(listed[k], 1) << i << ", " << k;
      }
    }
  }
}
TEST(MaskPlan, TilesGoByWhatNeighboursSee) {
  Matrix holes{200, 1000};
  holes.Show([](int64_t i, int64_t k) { return k <= 800 + i && !(k >= 100 && k < 700); });
  ExpectCovers(holes, holes.plan());
  EXPECT_EQ(holes.plan().tile(), 64);
  EXPECT_TRUE(holes.plan().wants_mask());
  EXPECT_EQ(holes.plan().branch().rows.count[0], 2u);  // the panels of the hole are left out

  Matrix steps{8, 8192};  // eight sequences decode, each in cells of its own
  steps.Show([](int64_t i, int64_t k) { return k / 1024 == i && k % 1024 < 1000; });
  ExpectCovers(steps, steps.plan());
  EXPECT_EQ(steps.plan().tile(), 1);
  EXPECT_EQ(steps.plan().branch().rows.count[3], 1u);

  Matrix interleaved{128, 1024};
  interleaved.Show([](int64_t i, int64_t k) { return k % 4 == i / 32; });
  ExpectCovers(interleaved, interleaved.plan());
  EXPECT_EQ(interleaved.plan().tile(), 64);

  Matrix scattered{64, 8192};  // what an indexer leaves: other keys for every query
  scattered.Show([](int64_t i, int64_t k) { return (k * 7 + i * 13) % 61 == 0; });
  ExpectCovers(scattered, scattered.plan());
  EXPECT_EQ(scattered.plan().branch().encoding, Encoding::kTokens);
  EXPECT_FALSE(scattered.plan().wants_mask());
  for (uint16_t& x : scattered.x) x = x == 0 ? F32ToF16(-0.5f) : x;
  EXPECT_TRUE(scattered.plan().wants_mask());
  EXPECT_EQ(scattered.plan().zero(), nullptr);

  Matrix ragged{2, 1999};  // keys beyond the last whole panel, and at both ends
  ragged.Show([](int64_t i, int64_t k) { return k % 97 == i || k == 1998; });
  ExpectCovers(ragged, ragged.plan(1));
  EXPECT_EQ(ragged.plan(1).branch().encoding, Encoding::kTokens);
  EXPECT_EQ(ragged.plan(1).branch().rows.count[0], 22u);
  EXPECT_EQ(ragged.plan(1).branch().tokens[21], 1998u);

  Matrix nothing{3, 100};
  ExpectCovers(nothing, nothing.plan());
  Matrix window{100, 300};
  window.Show([](int64_t i, int64_t k) { return k <= 150 + i && k > 150 + i - 20; });
  ExpectCovers(window, window.plan());
  EXPECT_FALSE(window.plan().wants_mask());
}
TEST(AlibiSlopes, AreAGeometricSeries) {
  EXPECT_EQ(AlibiSlopes(4, 8), (std::vector<float>{0.25f, 0.0625f, 0.015625f, 0.00390625f}));
  const std::vector<float> six =
      AlibiSlopes(6, 8);  // two beyond a power of two: between the others
  EXPECT_FLOAT_EQ(six[3], 0.00390625f);
  EXPECT_FLOAT_EQ(six[4], 0.5f);
  EXPECT_FLOAT_EQ(six[5], 0.125f);
}
}  // namespace mask_test
}  // namespace ggml
SLUICE_END_NAMESPACE
