// Every bf16 unit that this CPU has, beside double-precision loops over the same rounded inputs.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "sluice/runtime/kernels/attention_panel/attention_panel.h"
#include "sluice/runtime/kernels/attention_panel/attention_panel_reference.h"
#include "sluice/tests/support/normal_values.h"
#include "sluice/tests/support/not_finite.h"

namespace sluice::kernels {
namespace bf16_attention_test {
using tests::kInf;
using tests::kNan;

struct Shape {
  int64_t rows, keys, d, dv;
  float softcap = 0;
  bool masked = false, biased = false, gathered = false;
};

// The state of some rows, and all that a panel needs.
struct Problem {
  explicit Problem(const Shape& shape)
      : s(shape),
        dvp((shape.dv + kValuePad - 1) / kValuePad * kValuePad),
        q(Normal(s.rows * s.d, 1)),
        bias(Normal(s.keys, 4)),
        k(ToBF16(Normal(s.keys * s.d, 2))),
        v(ToBF16(Normal(s.keys * s.dv, 3))),
        m(s.rows, -kInf),
        l(s.rows, 0),
        o(s.rows * dvp, 0) {
    const float scale = kLog2E / std::sqrt(static_cast<float>(s.d));
    for (float& x : q) x *= scale;
  }

  static std::vector<uint16_t> ToBF16(const std::vector<float>& x) {
    std::vector<uint16_t> out;
    for (float e : x) out.push_back(F32ToBF16(e));
    return out;
  }
  int64_t Key(int64_t at) const { return s.gathered ? at * 37 % s.keys : at; }
  // Every fifth row sees nothing.
  bool Sees(int64_t row, int64_t at) const {
    return !s.masked || (row % 5 != 0 && (at * 7 + row * 3) % 4 != 0);
  }
  float* O(int64_t row) { return &o[row * dvp]; }

  void Fold(const Bf16Attention& unit) {
    std::vector<uint16_t> pq(unit.packed_queries(s.rows, s.d)), pk(unit.packed_keys(s.d)),
        pv(unit.packed_values(dvp));
    std::vector<float> scratch(unit.scratch_floats(s.rows, dvp), kNan);
    unit.pack_queries(q.data(), s.rows, s.d, pq.data());
    for (int64_t at = 0; at < s.keys; at += kPanelKeys) {
      AttentionPanel p;
      p.n = std::min(kPanelKeys, s.keys - at);
      p.rows = s.rows;
      p.d = s.d;
      p.dv = dvp;
      p.softcap = s.softcap;
      p.m = m.data();
      p.l = l.data();
      p.o = o.data();
      p.scratch = scratch.data();
      std::vector<uint32_t> ids;
      std::vector<float> biases(kPanelKeys, 0);
      for (int64_t j = 0; j < p.n; ++j) {
        ids.push_back(static_cast<uint32_t>(Key(at + j)));
        biases[j] = bias[at + j] * kLog2E;
      }
      std::vector<uint64_t> mask(s.rows, 0);
      for (int64_t r = 0; r < s.rows; ++r) {
        for (int64_t j = 0; j < p.n; ++j) mask[r] |= static_cast<uint64_t>(Sees(r, at + j)) << j;
      }
      if (s.masked) p.mask = mask.data();
      if (s.biased) p.bias = biases.data();
      unit.pack_keys({k.data(), DType::kBF16, s.d * 2, ids.data()}, p.n, s.d, pk.data());
      unit.pack_values({v.data(), DType::kBF16, s.dv * 2, ids.data()}, p.n, s.dv, pv.data());
      const float gain = unit.attend(p, pq.data(), pk.data(), pv.data());
      if (finite) {
        EXPECT_GE(gain, 0);
        EXPECT_LE(gain, 1);
      }
    }
  }

  // Row r in double precision; `magnitude`: the same sum over |v|.
  double Reference(int64_t r, bool magnitude, std::vector<double>& out) const {
    std::vector<int64_t> seen;
    for (int64_t j = 0; j < s.keys; ++j) {
      if (Sees(r, j)) seen.push_back(j);
    }
    out.resize(s.dv);
    return AttendRowReference(
        static_cast<int64_t>(seen.size()), s.dv,
        [&](int64_t i) {
          double x = 0;
          for (int64_t e = 0; e < s.d; ++e)
            x += static_cast<double>(BF16ToF32(F32ToBF16(q[r * s.d + e]))) *
                 BF16ToF32(k[Key(seen[i]) * s.d + e]);
          x /= kLog2E;
          if (s.softcap > 0) x = s.softcap * std::tanh(x / s.softcap);
          return x + (s.biased ? bias[seen[i]] : 0);
        },
        [&](int64_t i, int64_t e) {
          const double x = BF16ToF32(v[Key(seen[i]) * s.dv + e]);
          return magnitude ? std::abs(x) : x;
        },
        out.data());
  }

  Shape s;
  int64_t dvp;
  std::vector<float> q, bias;
  std::vector<uint16_t> k, v;
  std::vector<float> m, l, o;
  bool finite = true;
};

class Bf16Units : public testing::TestWithParam<Bf16Unit> {
 protected:
  void SetUp() override {
    unit_ = GetBf16Attention(GetParam());
    if (unit_ == nullptr) GTEST_SKIP() << "this CPU or build lacks the unit";
  }
  const Bf16Attention* unit_ = nullptr;
};

// Beyond the inputs only the probabilities are rounded, by 2^-8 of each at most.
void ExpectReference(const Problem& p, const std::string& what) {
  std::vector<double> want, magnitude;
  for (int64_t r = 0; r < p.s.rows; ++r) {
    const double lse = p.Reference(r, false, want);
    p.Reference(r, true, magnitude);
    if (std::isinf(lse)) {
      ASSERT_EQ(p.l[r], 0) << what << " row " << r;
      ASSERT_EQ(p.m[r], -kInf) << what << " row " << r;
      continue;
    }
    ASSERT_NEAR((p.m[r] + std::log2(p.l[r])) * kLn2, lse, 2e-5 + 0x1p-23 * std::abs(lse))
        << what << " row " << r;
    for (int64_t i = 0; i < p.dvp; ++i) {
      const double expected = i < p.s.dv ? want[i] : 0;
      const double bound = i < p.s.dv ? magnitude[i] * 0x1p-8 + 2e-5 : 0;
      ASSERT_NEAR(p.o[r * p.dvp + i] / p.l[r], expected, bound)
          << what << " row " << r << " column " << i;
    }
  }
}

TEST_P(Bf16Units, AgreeWithTheReference) {
  std::vector<Shape> shapes;
  for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 16, 17, 33, 47, 48, 49, 100, 256})
    shapes.push_back({rows, 130, 64, 64});
  for (int64_t keys : {1, 2, 15, 63, 64, 65, 127, 300}) shapes.push_back({13, keys, 64, 64});
  for (int64_t d : {1, 2, 31, 32, 33, 40, 96, 127, 128}) shapes.push_back({9, 70, d, 32});
  for (int64_t dv : {1, 8, 16, 24, 48, 80, 112, 128, 144}) shapes.push_back({9, 70, 32, dv});
  const size_t plain = shapes.size();
  for (size_t i = 0; i < plain; ++i) {
    Shape x = shapes[i];
    x.masked = true;
    x.biased = i % 2 == 0;
    x.softcap = i % 3 == 0 ? 2.0f : 0;
    x.gathered = x.keys % 37 != 0;
    shapes.push_back(x);
  }
  for (const Shape& x : shapes) {
    Problem p(x);
    p.Fold(*unit_);
    ExpectReference(p, "rows " + std::to_string(x.rows) + " keys " + std::to_string(x.keys) +
                           " d " + std::to_string(x.d) + " dv " + std::to_string(x.dv) +
                           (x.masked ? " masked" : ""));
  }
}

// Maxima that rise with every panel, by more than fp32 can hold in the end.
TEST_P(Bf16Units, RisingMaximaRescaleWhatWasSummed) {
  Problem p({20, 320, 64, 32, 0, false, true});
  for (int64_t j = 0; j < p.s.keys; ++j) p.bias[j] = static_cast<float>(j / 64 * (j / 64) * 20);
  p.Fold(*unit_);
  ExpectReference(p, "rising");
}

TEST_P(Bf16Units, RowsWithoutKeysStayAsTheyWere) {
  Problem p({100, 130, 64, 48, 0, true});
  p.m = Normal(p.m.size(), 11);
  p.o = Normal(p.o.size(), 12);
  for (float& x : p.l) x = 3.5f;
  const std::vector<float> m = p.m, l = p.l, o = p.o;
  p.Fold(*unit_);
  for (int64_t r = 0; r < p.s.rows; ++r) {
    const bool empty = r % 5 == 0;
    EXPECT_EQ(p.m[r] == m[r] && p.l[r] == l[r], empty) << r;
    EXPECT_EQ(std::memcmp(p.O(r), &o[r * p.dvp], p.dvp * sizeof(float)) == 0, empty) << r;
  }
}

TEST_P(Bf16Units, ANanQueryOrKeyShowsWhereItIsSeenOnly) {
  const Shape shape{20, 70, 40, 32, 0, true};
  Problem good(shape), query(shape), key(shape);
  good.Fold(*unit_);
  query.finite = key.finite = false;
  query.q[7 * shape.d + 39] = kNan;
  query.Fold(*unit_);
  const int64_t bad = 66;
  key.k[bad * shape.d + 3] = F32ToBF16(kNan);
  key.Fold(*unit_);
  for (int64_t r = 0; r < shape.rows; ++r) {
    const size_t bytes = good.dvp * sizeof(float);
    const bool same = std::memcmp(query.O(r), good.O(r), bytes) == 0 && query.l[r] == good.l[r];
    EXPECT_EQ(same, r != 7) << r;
    if (r == 7) {
      EXPECT_TRUE(std::isnan(query.l[r]) && std::isnan(query.O(r)[0]));
    }
    const bool untouched = std::memcmp(key.O(r), good.O(r), bytes) == 0 && key.l[r] == good.l[r];
    EXPECT_EQ(untouched, !key.Sees(r, bad)) << r;
    if (key.Sees(r, bad)) {
      EXPECT_TRUE(std::isnan(key.l[r]) && std::isnan(key.O(r)[0])) << r;
    }
  }
}

TEST_P(Bf16Units, ValuesThatAreNoNumbersShowInTheirColumn) {
  const Shape shape{20, 70, 40, 32};
  for (float bad : {kNan, kInf, -kInf}) {
    Problem good(shape), p(shape);
    good.Fold(*unit_);
    p.v[66 * shape.dv + 5] = F32ToBF16(bad);
    p.Fold(*unit_);
    for (int64_t r = 0; r < shape.rows; ++r) {
      for (int64_t i = 0; i < shape.dv; ++i) {
        if (i != 5)
          EXPECT_EQ(p.O(r)[i], good.O(r)[i]) << bad << " row " << r << " column " << i;
        else if (std::isnan(bad))
          EXPECT_TRUE(std::isnan(p.O(r)[i])) << r;
        else
          EXPECT_EQ(p.O(r)[i], bad) << r;
      }
    }
  }
}

TEST_P(Bf16Units, KeysThatWeighNothing) {
  Problem none({20, 70, 40, 32, 0, false, true});
  std::fill(none.bias.begin(), none.bias.end(), -kInf);
  none.Fold(*unit_);
  for (int64_t r = 0; r < none.s.rows; ++r) {
    EXPECT_EQ(none.l[r], 0);
    EXPECT_EQ(none.m[r], -kInf);
    for (int64_t i = 0; i < none.dvp; ++i) EXPECT_EQ(none.O(r)[i], 0);
  }
  Problem one({20, 70, 40, 32, 0, false, true});
  std::fill(one.bias.begin(), one.bias.end(), -kInf);
  one.bias[65] = 0;
  one.Fold(*unit_);
  for (int64_t r = 0; r < one.s.rows; ++r) {
    EXPECT_EQ(one.l[r], 1);
    for (int64_t i = 0; i < one.s.dv; ++i)
      EXPECT_EQ(one.O(r)[i], BF16ToF32(one.v[65 * one.s.dv + i]));
  }
}

// Rows are blocked by where they stand; what they get must not depend on it.
TEST_P(Bf16Units, ARowsBitsDoNotDependOnItsNeighbours) {
  Problem all({100, 130, 64, 80});
  all.Fold(*unit_);
  for (int64_t r : {0, 5, 47, 48, 97}) {
    Problem one({1, 130, 64, 80});
    std::copy_n(&all.q[r * 64], 64, one.q.begin());
    one.Fold(*unit_);
    EXPECT_EQ(std::memcmp(one.O(0), all.O(r), one.dvp * sizeof(float)), 0) << r;
    EXPECT_EQ(one.l[0], all.l[r]) << r;
  }
}

INSTANTIATE_TEST_SUITE_P(AttentionPanel, Bf16Units,
                         testing::Values(Bf16Unit::kAmx, Bf16Unit::kAvx512),
                         [](const testing::TestParamInfo<Bf16Unit>& i) {
                           return i.param == Bf16Unit::kAmx ? "Amx" : "Avx512";
                         });

TEST(Bf16Attention, TheBestUnitIsOneOfThem) {
  const Bf16Attention* best = GetBf16Attention();
  const Bf16Attention* amx = GetBf16Attention(Bf16Unit::kAmx);
  if (amx != nullptr) {
    EXPECT_EQ(best, amx);
  } else if (best != nullptr) {
    EXPECT_EQ(best, GetBf16Attention(Bf16Unit::kAvx512));
  }
  EXPECT_EQ(GetBf16Attention(Bf16Unit::kNone), nullptr);
}
}  // namespace bf16_attention_test
}  // namespace sluice::kernels
