#include "sluice/plugins/ggml/indexer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "sluice/api/dtype.h"
#include "sluice/plugins/ggml/mask.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/kernels/index_score/index_score_reference.h"
#include "sluice/tests/support/attention_data.h"

SLUICE_BEGIN_NAMESPACE
namespace ggml {
namespace indexer_test {
constexpr uint16_t kHidden = 0xFC00;
// A call over data of its own. Rows of weights, mask and scores lie further apart than they are
// long.
struct Problem {
  static constexpr int64_t kGap = 3;
  AttentionData data;
  std::vector<float> weights, out;
  std::vector<uint16_t> mask;

  Problem(int64_t n_kv, int64_t n_q, int64_t heads, int64_t d)
      : data(MakeAttentionData(DataKind::kGaussian, n_kv, n_q, heads, 1, d, d, 7)),
        weights(static_cast<size_t>(n_q * (heads + kGap))),
        out(static_cast<size_t>(n_q * (n_kv + kGap)), NAN),
        mask(static_cast<size_t>(n_q * (n_kv + kGap)), kHidden) {
    for (size_t i = 0; i < weights.size(); ++i)
      weights[i] = 0.1f * static_cast<float>(static_cast<int>(i * 7 % 13) - 4);
  }
  uint16_t& Mask(int64_t query, int64_t key) {
    return mask[static_cast<size_t>(query * (data.kv_len + kGap) + key)];
  }
  void Show(const std::function<float(int64_t query, int64_t key)>& bias) {
    for (int64_t i = 0; i < data.q_count; ++i) {
      for (int64_t s = 0; s < data.kv_len; ++s) Mask(i, s) = F32ToF16(bias(i, s));
    }
  }
  IndexerCall Call() {
    const int64_t n_kv = data.kv_len, heads = data.heads;
    return {data.Q(),    data.K(),    {weights.data(), data.q_count, 1, heads, heads + kGap, 0},
            mask.data(), n_kv + kGap, {out.data(), data.q_count, 1, n_kv, n_kv + kGap, 0}};
  }
  float At(int64_t query, int64_t key) const {
    return out[static_cast<size_t>(query * (data.kv_len + kGap) + key)];
  }
  std::vector<float> Run(int threads = 1) {
    const std::unique_ptr<Executor> executor = MakeTbbExecutor(threads);
    EXPECT_EQ(Indexer().Run(Call(), *executor), absl::OkStatus());
    return out;
  }
  // Everything that must not be written still is what it was.
  void ExpectGapsUntouched() const {
    for (int64_t i = 0; i < data.q_count; ++i) {
      for (int64_t g = 0; g < kGap; ++g) EXPECT_TRUE(std::isnan(At(i, data.kv_len + g)));
    }
  }
  void ExpectReference() {
    for (int64_t i = 0; i < data.q_count; ++i) {
      for (int64_t s = 0; s < data.kv_len; ++s) {
        if (Mask(i, s) == kHidden) {
          ASSERT_EQ(At(i, s), -HUGE_VALF) << i << " " << s;
          continue;
        }
        const double want = IndexScore(i, s) + static_cast<double>(F16ToF32(Mask(i, s)));
        ASSERT_NEAR(At(i, s), want, 1e-4) << i << " " << s;
      }
    }
    ExpectGapsUntouched();
  }
  double IndexScore(int64_t query, int64_t key) const {
    return kernels::IndexScoreReference(
        data.Q().at(query, 0), &weights[static_cast<size_t>(query * (data.heads + kGap))],
        data.heads, data.d, &data.k[static_cast<size_t>(key * data.d)]);
  }
};

TEST(Indexer, AgreesWithTheReference) {
  for (DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
    for (int64_t n_kv : {1, 63, 64, 65, 700, 1100}) {
      for (int64_t n_q : {1, 5}) {
        Problem p(n_kv, n_q, 6, 64);
        if (type != DType::kF32) p.data.Convert(type);
        p.Show([&](int64_t i, int64_t s) {  // causal, some of it biased
          return s <= n_kv - n_q + i ? (s % 5 == 0 ? -0.5f : 0.0f) : -HUGE_VALF;
        });
        p.Run(2);
        p.ExpectReference();
      }
    }
  }
}
TEST(Indexer, HolesAndQueriesThatSeeNothing) {
  Problem p(900, 4, 3, 32);
  p.Show([](int64_t i, int64_t s) {
    const bool seen = i == 0 ? s >= 500 : i == 1 ? s % 200 < 3 : i == 2 && s < 450;
    return seen ? 0.0f : -HUGE_VALF;
  });
  p.Run();
  p.ExpectReference();
}
TEST(Indexer, BitsDoNotDependOnThreads) {
  Problem p(3000, 3, 8, 128);
  p.Show([](int64_t, int64_t) { return 0.0f; });
  const std::vector<float> one = p.Run(1);
  const std::vector<float> four = p.Run(4);
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t s = 0; s < 3000; ++s) {
      const auto at = static_cast<size_t>(i * (3000 + Problem::kGap) + s);
      ASSERT_EQ(one[at], four[at]);
    }
  }
}
// A hidden key stays hidden whatever it holds, in a panel that is read as in one that is not; a
// visible one shows.
TEST(Indexer, NotANumber) {
  Problem p(200, 1, 2, 32);
  for (int64_t key : {10, 70, 150}) p.data.k[static_cast<size_t>(key * 32)] = NAN;
  p.Show([](int64_t, int64_t s) { return s < 100 && s != 10 ? 0.0f : -HUGE_VALF; });
  p.Run();
  EXPECT_EQ(p.At(0, 10), -HUGE_VALF);
  EXPECT_EQ(p.At(0, 150), -HUGE_VALF);
  EXPECT_TRUE(std::isnan(p.At(0, 70)));
  EXPECT_FALSE(std::isnan(p.At(0, 71)));
}
TEST(Indexer, RefusesShapesThatDoNotFit) {
  Problem p(64, 2, 2, 32);
  const auto why = [&](const std::function<void(IndexerCall&)>& spoil) {
    IndexerCall c = p.Call();
    spoil(c);
    InlineExecutor executor;
    return std::string(Indexer().Run(c, executor).message());
  };
  EXPECT_EQ(why([](IndexerCall&) {}), "");
  EXPECT_THAT(why([](IndexerCall& c) { c.k.dim = 16; }), testing::HasSubstr("k [64, 1, 16]"));
  EXPECT_THAT(why([](IndexerCall& c) { c.weights.dim = 3; }), testing::HasSubstr("weights [2, 3]"));
  EXPECT_THAT(why([](IndexerCall& c) { c.out.dim = 63; }), testing::HasSubstr("scores [2, 63]"));
  EXPECT_THAT(why([](IndexerCall& c) { c.mask_stride = 60; }), testing::HasSubstr("60 apart"));
  EXPECT_NE(why([](IndexerCall& c) { c.mask = nullptr; }), "");
  EXPECT_NE(why([](IndexerCall& c) { c.q.rows = 0; }), "");
}
}  // namespace indexer_test
}  // namespace ggml
SLUICE_END_NAMESPACE
