#include "sluice/routers/attention/psa/psa.h"

#include <gtest/gtest.h>

#include "sluice/routers/attention/psa/psa_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace psa_test {
std::string Psa(const double (&to)[4], const std::string& more = "") {
  return absl::StrCat("psa:block=16,tile=32,to1=", to[0], ",to2=", to[1], ",to4=", to[2],
                      ",to8=", to[3], more);
}
void ExpectDense(const RoutedRun& r, const AttentionData& a, double tolerance = 2e-5) {
  ASSERT_TRUE(r.status.ok()) << r.status;
  const RoutedRun want = RunRouter("dense", a);
  for (size_t i = 0; i < want.o.size(); ++i) ASSERT_NEAR(r.o[i], want.o[i], tolerance) << i;
}
// What the plan of a run says of each (query, head): lse, in double precision.
HarnessOptions WithLse(const AttentionData& a, std::vector<double>& lse) {
  HarnessOptions o;
  o.see = [&a, &lse](const AttentionPlan& plan) {
    lse = AttendReference(plan, a.Q(), a.K(), a.V(), a.scale()).lse;
  };
  return o;
}

TEST(Psa, LevelsAndOutputsAreTheReferences) {
  struct Case {
    DataKind kind;
    int64_t kv, q, heads, kv_heads;
  };
  struct Rule {
    const char* text;
    PsaReference reference;
  };
  const Rule rules[] = {
      {"", {.ends = {0.1, 0.3, 0.5, 0.8}}},
      {",assign=mass,to1=0.4,to2=0.5,to4=0.6,to8=0.8,min_exact=0.06",
       {.by_mass = true, .ends = {0.4, 0.5, 0.6, 0.8}, .min_exact = 0.06}},
      {",sample=2,seed=9,similarity_cap=true,similar2=0.1,similar4=0.05,similar8=0.02",
       {.sample = 2,
        .seed = 9,
        .ends = {0.1, 0.3, 0.5, 0.8},
        .capped = true,
        .similar = {0.1, 0.05, 0.02}}}};
  for (Rule rule : rules) {
    rule.reference.block = 16;
    rule.reference.tile = 32;
    for (const Case& c :
         {Case{DataKind::kNeedles, 300, 300, 4, 2}, Case{DataKind::kGaussian, 237, 77, 2, 1},
          Case{DataKind::kClustered, 413, 100, 4, 1}, Case{DataKind::kNeedles, 333, 1, 4, 2}}) {
      const AttentionData a = MakeAttentionData(c.kind, c.kv, c.q, c.heads, c.kv_heads, 32, 24, 51);
      const RoutedRun r = RunRouter(Psa({0.1, 0.3, 0.5, 0.8}, rule.text), a);
      ASSERT_TRUE(r.status.ok()) << r.status;
      const AttentionInputs in = a.Inputs();
      int64_t exact = 0;
      int64_t summaries = 0;
      for (int64_t i = 0; i < c.q; ++i) {
        for (int64_t h = 0; h < c.heads; ++h) {
          const std::vector<int> levels = rule.reference.Levels(in, i, h);
          const PsaReference::Row want = rule.reference.Attend(in, levels, i, h);
          ASSERT_EQ(r.lists[i * c.heads + h], want.keys) << rule.text << " " << i << " " << h;
          for (int64_t x = 0; x < 24; ++x)
            ASSERT_NEAR(r.o[(i * c.heads + h) * 24 + x], want.o[x], 5e-5) << rule.text << " " << i;
          exact += want.exact;
          summaries += want.summaries;
        }
      }
      EXPECT_EQ(r.counters.exact_pairs, exact);  // (f)
      EXPECT_EQ(r.counters.summary_pairs, summaries);
      EXPECT_GT(summaries, 0);
    }
  }
}
TEST(Psa, AllBlocksExactIsDense) {  // (a)
  for (const char* more : {"", ",assign=mass", ",similarity_cap=true", ",min_exact=1"}) {
    for (auto [kv, q] : {std::pair<int64_t, int64_t>{300, 300}, {277, 40}, {301, 1}, {1, 1}}) {
      const AttentionData a = MakeAttentionData(DataKind::kNeedles, kv, q, 4, 2, 32, 24, 1);
      const RoutedRun r = RunRouter(Psa({1, 1, 1, 1}, more), a);
      ExpectDense(r, a);
      EXPECT_EQ(r.counters.summary_pairs, 0);
      EXPECT_DOUBLE_EQ(r.counters.density(), 1);
    }
  }
}
TEST(Psa, EqualKeysInGroupsAreExactAtThatLevel) {  // (b)
  for (int64_t group : {2, 4, 8}) {
    AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 100, 4, 2, 32, 24, 2);
    for (int64_t s = 0; s < 300; ++s) {
      std::copy_n(a.k.begin() + s / group * group * 64, 64, a.k.begin() + s * 64);
    }
    const double at[] = {0, group == 2 ? 1.0 : 0, group <= 4 ? 1.0 : 0, 1};
    const RoutedRun r = RunRouter(Psa({at[0], at[1], at[2], at[3]}), a);
    ExpectDense(r, a, 5e-5);
    EXPECT_LT(r.counters.density(), 0.5);
    EXPECT_GT(r.counters.summary_pairs, 0);
    // At a coarser level it is not.
    if (group == 8) continue;
    const RoutedRun coarse = RunRouter(Psa({0, 0, 0, 1}), a);
    const RoutedRun dense = RunRouter("dense", a);
    double worst = 0;
    for (size_t i = 0; i < coarse.o.size(); ++i)
      worst = std::max<double>(worst, std::fabs(coarse.o[i] - dense.o[i]));
    EXPECT_GT(worst, 1e-2);
  }
}
TEST(Psa, NothingButTheForcedBlocksIsThoseBlocks) {  // (c)
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 100, 4, 2, 32, 24, 3);
  const RoutedRun r = RunRouter(Psa({0, 0, 0, 0}), a);
  ASSERT_TRUE(r.status.ok()) << r.status;
  for (int64_t i = 0; i < 100; ++i) {
    const int64_t t = 200 + i;
    const int64_t own = (200 + i / 32 * 32) / 16 * 16;
    std::vector<uint32_t> want;
    for (int64_t s = 0; s <= t; ++s) {
      if (s < 16 || s >= own) want.push_back(static_cast<uint32_t>(s));
    }
    EXPECT_EQ(r.lists[i * 4], want);
  }
  EXPECT_EQ(r.counters.summary_pairs, 0);
}
TEST(Psa, PooledMassIsNeverOverstated) {  // (d)
  for (DataKind kind : {DataKind::kGaussian, DataKind::kClustered, DataKind::kNeedles}) {
    const AttentionData a = MakeAttentionData(kind, 300, 100, 4, 2, 32, 24, 4);
    std::vector<double> pooled;
    std::vector<double> exact;
    ASSERT_TRUE(RunRouter(Psa({0, 0.2, 0.5, 1}), a, WithLse(a, pooled)).status.ok());
    ASSERT_TRUE(RunRouter("dense", a, WithLse(a, exact)).status.ok());
    for (size_t i = 0; i < exact.size(); ++i) {
      EXPECT_LE(pooled[i], exact[i] + 1e-6);
    }
    EXPECT_NE(pooled, exact);
  }
}
TEST(Psa, LargerRangesAreNestedAndCostMore) {  // (g)
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 512, 512, 4, 2, 32, 32, 5);
  for (const char* assign : {",assign=rank", ",assign=mass"}) {
    const double steps[][4] = {{0.05, 0.1, 0.2, 0.4}, {0.2, 0.3, 0.5, 0.6}, {0.5, 0.6, 0.7, 0.9}};
    RoutedRun last;
    for (const auto& to : steps) {
      const RoutedRun r = RunRouter(Psa(to, assign), a);
      ASSERT_TRUE(r.status.ok()) << r.status;
      for (size_t i = 0; i < last.lists.size(); ++i)
        EXPECT_TRUE(std::includes(r.lists[i].begin(), r.lists[i].end(), last.lists[i].begin(),
                                  last.lists[i].end()));
      if (!last.lists.empty()) {
        EXPECT_GT(r.counters.exact_pairs, last.counters.exact_pairs);
      } else {
        EXPECT_LT(r.counters.density(), 0.4);
        EXPECT_LT(r.counters.exact_pairs + r.counters.summary_pairs, r.counters.causal_pairs / 2);
      }
      last = r;
    }
  }
}
// At as many rows read, the pyramid errs less than keeping and dropping whole blocks.
TEST(Psa, PyramidBeatsKeepOrDropOnSmoothKeys) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 512, 128, 2, 1, 32, 32, 6);
  for (int64_t s = 1; s < 512; ++s) {
    for (int64_t x = 0; x < 32; ++x)
      a.k[s * 32 + x] = 0.98f * a.k[(s - 1) * 32 + x] + 0.2f * a.k[s * 32 + x];
  }
  const RoutedRun dense = RunRouter("dense", a);
  const auto error = [&](const RoutedRun& r) {
    double sum = 0;
    for (size_t i = 0; i < r.o.size(); ++i) sum += std::pow(r.o[i] - dense.o[i], 2);
    return sum;
  };
  const RoutedRun pyramid = RunRouter(Psa({0.05, 0.15, 0.3, 1}), a);
  const RoutedRun binary = RunRouter(Psa({0.3, 0.3, 0.3, 0.3}), a);
  EXPECT_LE(pyramid.counters.exact_pairs + pyramid.counters.summary_pairs,
            binary.counters.exact_pairs);
  EXPECT_LT(error(pyramid), 0.5 * error(binary));
}
TEST(Psa, SummariesEndBeforeTheTile) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 333, 100, 4, 2, 32, 24, 7);
  HarnessOptions o;
  o.see = [&](const AttentionPlan& plan) {
    const AttentionBranch& b = plan.branches[0];
    for (int64_t r = 0; r < b.num_lists * b.num_tiles; ++r) {
      for (uint32_t e = 0; e < b.rows.count[r]; ++e) {
        const PlanEntry& x = b.entries[b.rows.begin[r] + e];
        if (x.state != EntryState::kSummary) continue;
        const SummaryTable& t = plan.tables[x.level - 1];
        const uint32_t last = x.start + x.len - 1;
        EXPECT_LE(t.begin[last] + t.count[last], plan.q_begin + r % b.num_tiles * 32);
        EXPECT_FLOAT_EQ(t.log_count[last], std::log(static_cast<float>(t.count[last])));
      }
    }
  };
  ASSERT_TRUE(RunRouter(Psa({0.1, 0.3, 0.5, 1}), a, o).status.ok());
}
TEST(Psa, NanBlocksAreNeverSelectedAndBadRangesRefused) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 32, 2, 2, 32, 32, 8);
  for (int64_t s = 96; s < 112; ++s) a.k[s * 2 * 32] = NAN;
  const RoutedRun r = RunRouter(Psa({1, 1, 1, 1}), a);
  ASSERT_TRUE(r.status.ok());
  EXPECT_FALSE(std::binary_search(r.lists[0].begin(), r.lists[0].end(), 100u));
  EXPECT_TRUE(std::binary_search(r.lists[1].begin(), r.lists[1].end(), 100u));
  EXPECT_FALSE(RunRouter(Psa({0.5, 0.4, 0.5, 0.6}), a).status.ok());
  EXPECT_FALSE(RunRouter("psa:block=20", a).status.ok());
  EXPECT_FALSE(RunRouter("psa:similar2=0.1", a).status.ok());
}
}  // namespace psa_test
SLUICE_END_NAMESPACE
