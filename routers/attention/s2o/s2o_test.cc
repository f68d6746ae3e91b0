#include "sluice/routers/attention/s2o/s2o.h"

#include <gtest/gtest.h>

#include "sluice/routers/attention/s2o/s2o_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace s2o_test {
TEST(S2o, WalksAndStopsAsTheReference) {
  struct Case {
    DataKind kind;
    int64_t kv, q, heads, kv_heads;
  };
  for (bool gain : {true, false}) {
    for (const Case& c :
         {Case{DataKind::kNeedles, 500, 500, 4, 2}, Case{DataKind::kGaussian, 437, 100, 2, 1},
          Case{DataKind::kClustered, 700, 260, 4, 1}, Case{DataKind::kNeedles, 333, 1, 4, 2},
          Case{DataKind::kSinkRecent, 300, 290, 2, 2}}) {
      for (double tau : {0.0, 0.02, 0.3}) {
        const AttentionData a =
            MakeAttentionData(c.kind, c.kv, c.q, c.heads, c.kv_heads, 32, 24, 21);
        const std::string policy = absl::StrCat("s2o:segment=96,tile=16,sink=8,tau=", tau,
                                                ",stop=", gain ? "gain" : "score");
        std::vector<std::vector<int64_t>> history;
        HarnessOptions o;
        o.see = [&](const AttentionPlan& plan) {
          const AttentionBranch& b = plan.branches[1];
          int64_t at = -1;
          for (int64_t t = 0; t < b.num_tiles; ++t) {
            if (b.rows.begin[t] == at) continue;  // another tile of the same segment
            at = b.rows.begin[t];
            for (int64_t list = 0; list < b.num_lists; ++list) {
              const int64_t row = b.row_of(list, t);
              const auto ranked = b.tokens.subspan(b.rows.begin[row], b.rows.count[row]);
              history.emplace_back(ranked.begin(), ranked.end());
            }
          }
        };
        const RoutedRun r = RunRouter(policy, a, o);
        ASSERT_TRUE(r.status.ok()) << r.status;
        const S2oReference reference = {
            .segment = 96, .tile = 16, .sink = 8, .by_gain = gain, .tau = tau};
        const S2oReference::Result want = reference.Run(a.Inputs());
        ASSERT_EQ(history, want.history) << policy;
        EXPECT_EQ(r.counters.exact_pairs, want.pairs) << policy;
        for (size_t i = 0; i < r.o.size(); ++i) ASSERT_NEAR(r.o[i], want.o[i], 5e-5) << policy;
      }
    }
  }
}
TEST(S2o, TauZeroIsDense) {
  for (const char* more :
       {"", ",stop=score", ",guide=random,similarity=cosine", ",guide=none,share=head",
        ",unit=16,stop=score", ",sink=0", ",sink=200", ",segment=1000"}) {
    for (auto [kv, q] : {std::pair<int64_t, int64_t>{300, 300}, {301, 1}, {277, 40}}) {
      const AttentionData a = MakeAttentionData(DataKind::kNeedles, kv, q, 4, 2, 32, 24, 1);
      const RoutedRun r = RunRouter(absl::StrCat("s2o:segment=64,tau=0", more), a);
      ASSERT_TRUE(r.status.ok()) << r.status;
      const RoutedRun want = RunRouter("dense", a);
      for (size_t i = 0; i < want.o.size(); ++i) ASSERT_NEAR(r.o[i], want.o[i], 2e-5f) << more;
      EXPECT_EQ(r.counters.exact_pairs, want.counters.exact_pairs) << more;
      EXPECT_EQ(r.counters.stopped_panels, 0);
    }
  }
}
TEST(S2o, DensityFallsWithTau) {
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 1024, 1024, 4, 2, 32, 32, 2);
  for (const char* more : {"", ",stop=score", ",unit=16", ",share=head"}) {
    int64_t last = int64_t{1} << 60;
    int64_t first = 0;
    for (double tau : {0.0, 0.001, 0.01, 0.1, 1.0}) {
      const RoutedRun r =
          RunRouter(absl::StrCat("s2o:segment=128,sink=16,tile=16,tau=", tau, more), a);
      ASSERT_TRUE(r.status.ok()) << r.status;
      EXPECT_LE(r.counters.exact_pairs, last) << more << " " << tau;
      last = r.counters.exact_pairs;
      if (tau == 0) first = last;
    }
    EXPECT_LT(static_cast<double>(last), 0.6 * static_cast<double>(first)) << more;
  }
}
// The order is worth having: the first keys of a ranking carry more probability than as many of the
// history in its own order.
TEST(S2o, RankedHistoryCarriesMoreMass) {
  double ranked = 0;
  double plain = 0;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    const AttentionData a = MakeAttentionData(DataKind::kClustered, 1024, 64, 4, 2, 32, 32, seed);
    HarnessOptions o;
    o.see = [&](const AttentionPlan& plan) {
      const AttentionBranch& b = plan.branches[1];
      ASSERT_EQ(b.rows.count[0], 960u);
      for (int64_t i = 0; i < plan.q_count; ++i) {
        std::vector<double> p(960);
        double total = 0;
        for (int64_t s = 0; s < 960; ++s) {
          p[s] = std::exp(S2oReference::Logit(a.Inputs(), i, 0, s));
          total += p[s];
        }
        for (int64_t j = 0; j < 128; ++j) {
          ranked += p[b.tokens[b.rows.begin[0] + j]] / total / 384;
          plain += p[j] / total / 384;
        }
      }
    };
    ASSERT_TRUE(RunRouter("s2o:segment=64,sink=0", a, o).status.ok());
  }
  EXPECT_GT(ranked, 0.7);
  EXPECT_LT(plain, 0.5);
}
TEST(S2o, NanKeysComeLastAndStillShow) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 256, 64, 2, 2, 32, 32, 4);
  a.k[(100 * 2 + 1) * 32] = NAN;
  HarnessOptions o;
  o.see = [&](const AttentionPlan& plan) {
    const AttentionBranch& b = plan.branches[1];
    const int64_t row = b.row_of(1, 0);
    EXPECT_EQ(b.tokens[b.rows.begin[row] + b.rows.count[row] - 1], 100u);
  };
  const RoutedRun r = RunRouter("s2o:segment=64,sink=0,tau=0", a, o);
  ASSERT_TRUE(r.status.ok());
  EXPECT_FALSE(std::isnan(r.o[0]));
  EXPECT_TRUE(std::isnan(r.o[32]));
}
}  // namespace s2o_test
SLUICE_END_NAMESPACE
