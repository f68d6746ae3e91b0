#include "sluice/routers/attention/sale/sale.h"

#include <gtest/gtest.h>

#include "sluice/routers/attention/sale/sale_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace sale_test {
constexpr char kSale[] = "sale:block=16,tile=32,local=32,align=32,dense_until=0";
std::string Sale(double tau, const std::string& more = "") {
  return absl::StrCat(kSale, ",tau=", tau, more);
}
void ExpectDense(const RoutedRun& r, const AttentionData& a) {
  ASSERT_TRUE(r.status.ok()) << r.status;
  const RoutedRun want = RunRouter("dense", a);
  for (size_t i = 0; i < want.o.size(); ++i) ASSERT_NEAR(r.o[i], want.o[i], 2e-5f) << i;
  EXPECT_EQ(r.counters.exact_pairs, want.counters.exact_pairs);
}
// Attention over the lists of a run, in double precision.
void ExpectAttendsItsLists(const RoutedRun& r, const AttentionData& a) {
  for (int64_t i = 0; i < a.q_count; ++i) {
    for (int64_t h = 0; h < a.heads; ++h) {
      const int64_t kv = h / (a.heads / a.kv_heads);
      double l = 0;
      std::vector<double> o(a.dv);
      for (uint32_t s : r.lists[i * a.heads + h]) {
        double logit = 0;
        for (int64_t x = 0; x < a.d; ++x)
          logit += static_cast<double>(a.Q().at(i, h)[x]) * a.K().Get(s, kv, x) * a.scale();
        l += std::exp(logit);
        for (int64_t x = 0; x < a.dv; ++x) o[x] += std::exp(logit) * a.V().Get(s, kv, x);
      }
      for (int64_t x = 0; x < a.dv; ++x)
        ASSERT_NEAR(r.o[(i * a.heads + h) * a.dv + x], o[x] / l, 3e-5) << i << " " << h;
    }
  }
}

TEST(Sale, KeepsTheBlocksOfTheReference) {
  struct Case {
    DataKind kind;
    int64_t kv, q, heads, kv_heads;
    double tau;
  };
  for (const char* products : {"exact", "int4"}) {
    for (const Case& c : {Case{DataKind::kNeedles, 300, 300, 4, 2, 0.3},
                          Case{DataKind::kGaussian, 237, 237, 2, 1, 0.2},
                          Case{DataKind::kClustered, 333, 100, 4, 1, 0.05},
                          Case{DataKind::kSinkRecent, 200, 200, 2, 2, 0.01},
                          Case{DataKind::kNeedles, 400, 1, 4, 2, 0.05}}) {
      const AttentionData a = MakeAttentionData(c.kind, c.kv, c.q, c.heads, c.kv_heads, 32, 24, 11);
      const RoutedRun r = RunRouter(Sale(c.tau, absl::StrCat(",products=", products)), a);
      ASSERT_TRUE(r.status.ok()) << r.status;
      const bool int4 = std::string(products) == "int4";
      const SaleReference want = {
          .block = 16, .tile = 32, .local = 32, .align = 32, .tau = c.tau, .int4 = int4};
      const auto margins = want.Margins(a.Inputs());
      int64_t unsure = 0;
      int64_t sure = 0;
      for (int64_t i = 0; i < c.q; ++i) {
        for (int64_t h = 0; h < c.heads; ++h) {
          const std::vector<double>& margin = margins[h][i / 32];
          const auto& list = r.lists[i * c.heads + h];
          for (int64_t b = 0; b <= (a.q_begin() + i) / 16; ++b) {
            // Rounding to 4 bits may fall either way in single precision.
            if (std::fabs(margin[b]) < (int4 ? 2e-2 : 1e-4)) {
              ++unsure;
              continue;
            }
            ++sure;
            const bool kept =
                std::binary_search(list.begin(), list.end(), static_cast<uint32_t>(b * 16));
            ASSERT_EQ(kept, margin[b] > 0) << "query " << i << " head " << h << " block " << b;
          }
        }
      }
      EXPECT_LT(unsure, sure / 20 + 1);
      ExpectAttendsItsLists(r, a);
    }
  }
}
TEST(Sale, TauZeroIsDense) {
  for (const char* products : {",products=exact", ",products=int4"}) {
    for (auto [kv, q] : {std::pair<int64_t, int64_t>{300, 300}, {301, 1}, {77, 40}}) {
      const AttentionData a = MakeAttentionData(DataKind::kNeedles, kv, q, 4, 2, 32, 24, 1);
      ExpectDense(RunRouter(Sale(0, absl::StrCat(products, ",dense_below=0")), a), a);
    }
  }
}
TEST(Sale, ExactProductsLoseNoKeyAboveTau) {
  for (double tau : {0.05, 0.2, 0.5}) {
    const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 300, 4, 2, 32, 24, 2);
    const RoutedRun r = RunRouter(Sale(tau, ",products=exact,tile=8"), a);
    EXPECT_LT(r.counters.density(), 0.98);
    for (int64_t i = 0; i < 300; ++i) {
      for (int64_t h = 0; h < 4; ++h) {
        std::vector<double> p;
        double l = 0;
        for (int64_t s = 0; s <= i; ++s) {
          double logit = 0;
          for (int64_t x = 0; x < 32; ++x)
            logit += static_cast<double>(a.Q().at(i, h)[x]) * a.K().Get(s, h / 2, x) * a.scale();
          p.push_back(std::exp(logit));
          l += p.back();
        }
        const auto& list = r.lists[i * 4 + h];
        for (int64_t s = 0; s <= i; ++s) {
          if (p[s] / l <= tau * (1 + 1e-4)) continue;
          EXPECT_TRUE(std::binary_search(list.begin(), list.end(), static_cast<uint32_t>(s)));
        }
      }
    }
  }
}
TEST(Sale, NestedInTauAndPairsFall) {
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 512, 512, 4, 2, 32, 32, 3);
  RoutedRun last;
  for (double tau : {0.001, 0.02, 0.3}) {
    const RoutedRun r = RunRouter(Sale(tau), a);
    for (size_t i = 0; i < last.lists.size(); ++i)
      EXPECT_TRUE(std::includes(last.lists[i].begin(), last.lists[i].end(), r.lists[i].begin(),
                                r.lists[i].end()));
    if (!last.lists.empty()) {
      EXPECT_LT(r.counters.exact_pairs, last.counters.exact_pairs);
    }
    last = r;
  }
  EXPECT_LT(last.counters.density(), 0.7);
  EXPECT_EQ(last.counters.causal_pairs, int64_t{4} * 512 * 513 / 2);
}
TEST(Sale, RemovingTheMeansChangesNothingInExactProducts) {
  AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 300, 4, 2, 32, 24, 4);
  const std::string small = Sale(0.5, ",tile=8");
  const std::string exact = small + ",products=exact";
  const RoutedRun smooth = RunRouter(exact, a);
  EXPECT_EQ(smooth.lists, RunRouter(exact + ",smooth_k=false,smooth_q=false", a).lists);
  EXPECT_EQ(smooth.lists, RunRouter(exact + ",smooth_q=false", a).lists);
  // A common vector in all keys moves all logits of a query alike: with smoothing, 4 bits do not
  // notice it; without, they are spent on it.
  const RoutedRun before = RunRouter(small, a);
  for (size_t i = 0; i < a.k.size(); ++i) a.k[i] += 8;
  const auto same = [&](const RoutedRun& r) {
    int64_t n = 0;
    for (size_t i = 0; i < r.lists.size(); ++i) n += r.lists[i] == before.lists[i];
    return static_cast<double>(n) / static_cast<double>(r.lists.size());
  };
  EXPECT_GT(same(RunRouter(small, a)), 0.98);
  EXPECT_LT(same(RunRouter(small + ",smooth_k=false", a)), 0.9);
}
TEST(Sale, FourBitsRarelySkipWhatMatters) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 400, 400, 4, 2, 32, 32, 5);
  const RoutedRun exact = RunRouter(Sale(0.1, ",products=exact"), a);
  const RoutedRun int4 = RunRouter(Sale(0.1), a);
  int64_t lost = 0;
  int64_t all = 0;
  for (size_t i = 0; i < exact.lists.size(); ++i) {
    all += std::ssize(exact.lists[i]);
    for (uint32_t s : exact.lists[i])
      lost += !std::binary_search(int4.lists[i].begin(), int4.lists[i].end(), s);
  }
  EXPECT_LT(static_cast<double>(lost) / static_cast<double>(all), 0.05);
}
TEST(Sale, ThresholdsOfHeads) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 256, 256, 4, 2, 32, 32, 6);
  const RoutedRun one = RunRouter(Sale(0.5), a);
  const RoutedRun r = RunRouter(Sale(0.5, ",taus=0/0.5/0.000001/1"), a);
  ASSERT_TRUE(r.status.ok()) << r.status;
  int64_t first = 0;
  for (int64_t i = 0; i < 256; ++i) {
    first += std::ssize(r.lists[i * 4]);
    EXPECT_EQ(r.lists[i * 4 + 1], one.lists[i * 4 + 1]);
    EXPECT_EQ(std::ssize(r.lists[i * 4 + 2]), i + 1);  // below dense_below
    EXPECT_LE(r.lists[i * 4 + 3].size(), one.lists[i * 4 + 3].size());
  }
  EXPECT_EQ(first, 256 * 257 / 2);
  EXPECT_FALSE(RunRouter(Sale(0.5, ",taus=0.1/0.2"), a).status.ok());
  EXPECT_FALSE(RunRouter(Sale(0.5, ",taus=0.1/x/1/1"), a).status.ok());
  EXPECT_FALSE(RunRouter(Sale(0.5, ",taus=0.1/2/1/1"), a).status.ok());
}
TEST(Sale, ShortPromptsMayBeDense) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 256, 256, 4, 2, 32, 32, 7);
  ExpectDense(RunRouter("sale:block=16,tile=32,local=32,align=32,tau=1,dense_until=256", a), a);
  EXPECT_LT(RunRouter("sale:block=16,tile=32,local=32,align=32,tau=1,dense_until=255", a)
                .counters.density(),
            1);
}
TEST(Sale, NanScoresAreNotSelected) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 256, 64, 4, 2, 32, 32, 8);
  for (int64_t x = 0; x < 32; ++x) a.q[x] = NAN;  // one row of a tile
  const RoutedRun r = RunRouter(Sale(0.1, ",smooth_q=false"), a);
  ASSERT_TRUE(r.status.ok());
  EXPECT_TRUE(std::isnan(r.o[0]));
  EXPECT_FALSE(std::isnan(r.o[4 * 32]));
}
}  // namespace sale_test
SLUICE_END_NAMESPACE
