#include "sluice/routers/attention/pbs_attn/pbs_attn.h"

#include <gtest/gtest.h>

#include "sluice/routers/attention/pbs_attn/pbs_attn_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace pbs_attn_test {
constexpr char kPbs[] = "pbs_attn:block=16,segment=64";

void ExpectAttendsItsLists(const RoutedRun& r, const AttentionData& a) {
  for (int64_t i = 0; i < a.q_count; ++i) {
    for (int64_t h = 0; h < a.heads; ++h) {
      double l = 0;
      std::vector<double> o(a.dv);
      for (uint32_t s : r.lists[i * a.heads + h]) {
        const double w = std::exp(PbsReference::Logit(a.Inputs(), i, h, s));
        l += w;
        for (int64_t x = 0; x < a.dv; ++x) o[x] += w * a.V().Get(s, h / (a.heads / a.kv_heads), x);
      }
      for (int64_t x = 0; x < a.dv; ++x)
        ASSERT_NEAR(r.o[(i * a.heads + h) * a.dv + x], o[x] / l, 3e-5) << i << " " << h;
    }
  }
}

TEST(PbsAttn, OrdersAndListsAreTheReferences) {
  struct Case {
    DataKind kind;
    int64_t kv, q, heads, kv_heads;
  };
  for (const char* permute : {"head", "kv", "none"}) {
    for (const Case& c :
         {Case{DataKind::kNeedles, 320, 320, 4, 2}, Case{DataKind::kGaussian, 333, 333, 2, 1},
          Case{DataKind::kClustered, 517, 200, 4, 1}, Case{DataKind::kNeedles, 300, 1, 4, 2},
          Case{DataKind::kGaussian, 50, 50, 2, 2}}) {
      const AttentionData a = MakeAttentionData(c.kind, c.kv, c.q, c.heads, c.kv_heads, 32, 24, 31);
      const std::string name = permute;
      const int64_t shared = name == "head" ? 1 : name == "kv" ? c.heads / c.kv_heads : 0;
      const PbsReference want = {.block = 16, .segment = 64, .p = 0.4, .heads_per_order = shared};
      std::vector<std::vector<int64_t>> orders;
      for (int64_t h = 0; h < c.heads; ++h) orders.push_back(want.Order(a.Inputs(), h));
      HarnessOptions o;
      o.see = [&](const AttentionPlan& plan) {
        for (int64_t h = 0; h < c.heads && shared > 0; ++h) {
          const std::vector<int64_t> got(plan.Perm(h), plan.Perm(h) + c.kv);
          EXPECT_EQ(got, orders[h]) << name;
          for (int64_t j = 0; j < c.kv; ++j) ASSERT_EQ(got[j] / 64, j / 64);
        }
        EXPECT_EQ(plan.key_perm.empty(), shared == 0);
        const AttentionBranch& b = plan.branches[0];
        for (int64_t row = 0; row < b.num_lists * b.num_tiles; ++row) {
          const PlanEntry& own = b.entries[b.rows.begin[row] + b.rows.count[row] - 1];
          EXPECT_EQ(own.mask, shared > 0 ? MaskClass::kPermCausal : MaskClass::kCausal);
        }
      };
      const RoutedRun r = RunRouter(absl::StrCat(kPbs, ",p=0.4,permute=", permute), a, o);
      ASSERT_TRUE(r.status.ok()) << r.status;
      for (int64_t i = 0; i < c.q; ++i) {
        for (int64_t h = 0; h < c.heads; ++h)
          ASSERT_EQ(r.lists[i * c.heads + h], want.List(a.Inputs(), orders[h], i, h))
              << name << " query " << i << " head " << h;
      }
      ExpectAttendsItsLists(r, a);
    }
  }
}
TEST(PbsAttn, AllBlocksAreDenseInAnyOrder) {
  for (const char* permute : {"head", "kv", "none"}) {
    for (auto [kv, q] : {std::pair<int64_t, int64_t>{300, 300}, {333, 70}, {301, 1}, {1, 1}}) {
      const AttentionData a = MakeAttentionData(DataKind::kNeedles, kv, q, 4, 2, 32, 24, 1);
      const RoutedRun r = RunRouter(absl::StrCat(kPbs, ",p=1,permute=", permute), a);
      ASSERT_TRUE(r.status.ok()) << r.status;
      const RoutedRun want = RunRouter("dense", a);
      for (size_t i = 0; i < want.o.size(); ++i) ASSERT_NEAR(r.o[i], want.o[i], 2e-5f);
      EXPECT_EQ(r.counters.exact_pairs, want.counters.exact_pairs);
    }
  }
}
TEST(PbsAttn, NestedInPAndPairsFall) {
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 512, 512, 4, 2, 32, 32, 2);
  RoutedRun last;
  for (double p : {0.95, 0.6, 0.2}) {
    const RoutedRun r = RunRouter(absl::StrCat(kPbs, ",p=", p), a);
    for (size_t i = 0; i < last.lists.size(); ++i)
      EXPECT_TRUE(std::includes(last.lists[i].begin(), last.lists[i].end(), r.lists[i].begin(),
                                r.lists[i].end()));
    if (!last.lists.empty()) {
      EXPECT_LT(r.counters.exact_pairs, last.counters.exact_pairs);
    }
    for (const auto& list : r.lists) EXPECT_EQ(list.front(), 0u);
    last = r;
  }
  EXPECT_LT(last.counters.density(), 0.5);
}
// What the order is for: scattered keys that the last queries want come together in few blocks.
TEST(PbsAttn, SortingRaisesTheMassOfAsManyBlocks) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 512, 64, 2, 1, 32, 32, 3);
  for (int64_t i = 0; i < 64 * 2; ++i) {
    for (int64_t x = 0; x < 32; ++x) a.q[i * 32 + x] += 1.5f;
  }
  for (int64_t s = 0; s < 448; s += 7) {
    for (int64_t x = 0; x < 32; ++x) a.k[s * 32 + x] += 0.7f;
  }
  const auto mass = [&](const RoutedRun& r) {
    double sum = 0;
    for (int64_t i = 0; i < 64; ++i) {
      double l = 0;
      double held = 0;
      for (int64_t s = 0; s <= 448 + i; ++s) {
        const double w = std::exp(PbsReference::Logit(a.Inputs(), i, 0, s));
        l += w;
        held += std::binary_search(r.lists[i * 2].begin(), r.lists[i * 2].end(),
                                   static_cast<uint32_t>(s))
                    ? w
                    : 0;
      }
      sum += held / l / 64;
    }
    return sum;
  };
  const RoutedRun sorted = RunRouter(absl::StrCat(kPbs, ",p=0.5"), a);
  const RoutedRun plain = RunRouter(absl::StrCat(kPbs, ",p=0.5,permute=none"), a);
  EXPECT_LT(sorted.counters.density(), plain.counters.density());
  EXPECT_GT(mass(sorted), mass(plain));
}
TEST(PbsAttn, NanKeysAreNeverSelected) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 256, 16, 2, 2, 32, 32, 4);
  a.k[(70 * 2) * 32] = NAN;
  const RoutedRun r = RunRouter(absl::StrCat(kPbs, ",p=0.5,permute=none"), a);
  ASSERT_TRUE(r.status.ok()) << r.status;
  EXPECT_FALSE(std::binary_search(r.lists[0].begin(), r.lists[0].end(), 70u));
  EXPECT_FALSE(RunRouter("pbs_attn:block=32,segment=48", a).status.ok());
}
}  // namespace pbs_attn_test
SLUICE_END_NAMESPACE
