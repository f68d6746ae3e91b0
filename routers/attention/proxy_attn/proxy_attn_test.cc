#include "sluice/routers/attention/proxy_attn/proxy_attn.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/proxy_attn/proxy_attn_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace proxy_attn_test {
struct Rule {
  const char* text;
  attention::ProxyAttnReference reference;
};
const Rule kRules[] = {
    {"block=16,tile=16,gamma=0.5,min_budget=0",
     {.block = 16, .tile = 16, .gamma = 0.5, .min_budget = 0}},
    {"block=32,tile=24,stride=1,gamma=0.7,min_budget=0,sink=0",
     {.block = 32, .tile = 24, .stride = 1, .gamma = 0.7, .min_budget = 0, .sink = 0}},
    {"block=16,tile=40,stride=8,gamma=0.4,min_budget=40,sink=2,local=3",
     {.block = 16, .tile = 40, .stride = 8, .gamma = 0.4, .min_budget = 40, .sink = 2, .local = 3}},
    {"block=16,tile=16,gamma=0.3,min_budget=70,min_budget_of=head,least_queries=1",
     {.block = 16,
      .tile = 16,
      .gamma = 0.3,
      .min_budget = 70,
      .floor_of_head = true,
      .least_queries = 1}},
    {"block=16,tile=32,gamma=0.6,min_budget=0,force_counts_in_budget=true,local=2",
     {.block = 16, .tile = 32, .gamma = 0.6, .min_budget = 0, .local = 2, .count_forced = true}},
    {"block=12,tile=7,stride=3,gamma=0,min_budget=0,least_queries=1",
     {.block = 12, .tile = 7, .stride = 3, .gamma = 0, .min_budget = 0, .least_queries = 1}},
    {"min_budget=128,gamma=0.9", {.gamma = 0.9, .min_budget = 128}},
    {"block=16,tile=16,gamma=1", {.block = 16, .tile = 16, .gamma = 1}},
    {"", {}},
};
std::string Policy(const std::string& settings) { return absl::StrCat("proxy_attn:", settings); }

TEST(ProxyAttn, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (const Rule& rule : kRules) {
      ExpectListsOf(rule.reference, Policy(rule.text), a, c.Options());
      if (a.kv_heads == 1) continue;
      attention::ProxyAttnReference two = rule.reference;
      two.groups = 2;
      const char* comma = *rule.text == 0 ? "" : ",";
      ExpectListsOf(two, Policy(absl::StrCat(rule.text, comma, "groups=2")), a, c.Options());
    }
  }
}
TEST(ProxyAttn, TiesGoToTheFirstBlock) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 333, 333, 4, 2, 16, 24, 2);
  std::fill(a.q.begin(), a.q.end(), 0.0f);  // every key is as good as any other
  for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule.text), a);
  // 21 blocks, the last of them of 13 keys; half of the attention is in 11 of the last tile's.
  const RoutedRun r = RunRouter(Policy("block=16,tile=16,gamma=0.5,min_budget=0"), a);
  ASSERT_TRUE(r.status.ok()) << r.status;
  EXPECT_EQ(r.lists[332 * 4],
            attention::reference::KeysOf({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 20}, 16, 332));
}

// By falling rank: the blocks of a plan's row, and those of a head by the largest probability that
// a tile's queries give any of their keys.
using Rankings = std::vector<std::vector<uint32_t>>;
Rankings RankingsOf(const std::string& policy, const AttentionData& a) {
  Rankings rows;
  HarnessOptions o;
  o.see = [&](const AttentionPlan& plan) {
    const AttentionBranch& b = plan.branches[0];
    for (int64_t r = 0; r < b.num_lists * b.num_tiles; ++r) {
      const uint32_t* at = b.tokens.data() + b.rows.begin[r];
      rows.emplace_back(at, at + b.rows.count[r]);
    }
  };
  const RoutedRun r = RunRouter(policy, a, o);
  EXPECT_TRUE(r.status.ok()) << r.status;
  return rows;
}
std::vector<uint32_t> OwnRanking(const AttentionData& a, int64_t head, int64_t from, int64_t to,
                                 int64_t block) {
  const int64_t own = (a.q_begin() + from) / block;
  const int64_t visible = (a.q_begin() + to - 1) / block + 1;
  std::vector<std::pair<double, uint32_t>> best(visible);
  for (int64_t b = 0; b < visible; ++b) best[b].second = static_cast<uint32_t>(b);
  for (int64_t i = from; i < to; ++i) {
    std::vector<double> e;
    double total = 0;
    for (int64_t s = 0; s <= a.q_begin() + i; ++s) {
      double logit = 0;
      for (int64_t x = 0; x < a.d; ++x)
        logit += double{a.q[(i * a.heads + head) * a.d + x]} *
                 double{a.k[(s * a.kv_heads + head / (a.heads / a.kv_heads)) * a.d + x]};
      e.push_back(std::exp(logit * double{a.scale()}));
      total += e.back();
    }
    for (size_t s = 0; s < e.size(); ++s) {
      double& p = best[s / static_cast<size_t>(block)].first;
      p = std::min(p, -e[s] / total);
    }
  }
  for (auto& [p, b] : best) {
    if (b == 0 || b >= own) p = -2;  // forced ones come first, by number
  }
  std::sort(best.begin(), best.end());
  std::vector<uint32_t> ranking;
  for (const auto& [p, b] : best) ranking.push_back(b);
  return ranking;
}
TEST(ProxyAttn, AProxyPerHeadAtStrideOneRanksAsTheHeadItself) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 200, 3, 3, 32, 24, 3);
  const Rankings got = RankingsOf(Policy("groups=3,stride=1,block=16,tile=16,gamma=1"), a);
  ASSERT_EQ(got.size(), 3u * 13);
  for (int64_t head = 0; head < 3; ++head) {
    for (int64_t t = 0; t < 13; ++t)
      EXPECT_EQ(got[head * 13 + t],
                OwnRanking(a, head, t * 16, std::min<int64_t>(200, t * 16 + 16), 16))
          << head << " " << t;
  }
}
TEST(ProxyAttn, HeadsThatAreAlikeLoseNothingByAProxy) {
  AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 200, 4, 2, 32, 24, 4);
  for (int64_t i = 0; i < 200; ++i) {
    for (int64_t h = 1; h < 4; ++h) std::copy_n(&a.q[i * 4 * 32], 32, &a.q[(i * 4 + h) * 32]);
  }
  for (int64_t s = 0; s < 300; ++s) std::copy_n(&a.k[s * 64], 32, &a.k[s * 64 + 32]);
  const Rankings got = RankingsOf(Policy("groups=1,stride=1,block=16,tile=16,gamma=1"), a);
  for (int64_t t = 0; t < 13; ++t) {
    const auto want = OwnRanking(a, 0, t * 16, std::min<int64_t>(200, t * 16 + 16), 16);
    EXPECT_EQ(got[t], want) << t;
    EXPECT_EQ(got[13 + t], want) << t;
  }
}
TEST(ProxyAttn, ListsOfAGroupAreNested) {
  for (DataKind kind : {DataKind::kGaussian, DataKind::kNeedles, DataKind::kClustered}) {
    AttentionData a = MakeAttentionData(kind, 300, 300, 6, 3, 32, 24, 5);
    for (int64_t i = 0; i < 300 * 6 * 32; ++i)  // heads of more and less attention
      a.q[i] *= 0.5f * static_cast<float>(i / 32 % 6 + 1);
    const RoutedRun r = RunRouter(Policy("block=16,tile=16,gamma=0.6,min_budget=0"), a);
    ASSERT_TRUE(r.status.ok()) << r.status;
    int64_t differ = 0;
    for (int64_t i = 0; i < 300; ++i) {
      for (int64_t x = 0; x < 6; ++x) {
        for (int64_t y = 0; y < 6; ++y) {
          const auto& small = r.lists[i * 6 + x];
          const auto& large = r.lists[i * 6 + y];
          if (small.size() > large.size()) continue;
          differ += small.size() < large.size();
          EXPECT_TRUE(std::includes(large.begin(), large.end(), small.begin(), small.end()));
        }
      }
    }
    EXPECT_GT(differ, 0);
  }
}
TEST(ProxyAttn, GammaOneIsDenseAndLessHoldsLess) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 400, 400, 4, 2, 32, 24, 6);
  const RoutedRun dense = RunRouter("dense", a);
  double before = 0;
  for (const char* gamma : {"0.2", "0.6", "0.9", "1"}) {
    const RoutedRun r =
        RunRouter(Policy(absl::StrCat("block=16,tile=32,min_budget=0,gamma=", gamma)), a);
    ASSERT_TRUE(r.status.ok()) << r.status;
    EXPECT_GT(r.counters.density(), before);
    before = r.counters.density();
    if (*gamma != '1') continue;
    EXPECT_EQ(r.lists, dense.lists);
    for (size_t i = 0; i < dense.o.size(); ++i) ASSERT_NEAR(r.o[i], dense.o[i], 2e-5f);
  }
}
// Forced blocks inside a small budget leave nothing to the ranking; beside it they cost more.
TEST(ProxyAttn, ForcedBlocksCountOrNot) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 320, 320, 2, 2, 32, 24, 7);
  const std::string rule = "block=16,tile=16,gamma=0,min_budget=48,force_counts_in_budget=";
  const RoutedRun inside = RunRouter(Policy(rule + "true"), a);
  const RoutedRun beside = RunRouter(Policy(rule + "false"), a);
  ASSERT_TRUE(inside.status.ok() && beside.status.ok());
  EXPECT_EQ(inside.lists[319].size(), 3u * 16);
  EXPECT_EQ(beside.lists[319].size(), 5u * 16);
  EXPECT_TRUE(std::includes(beside.lists[319].begin(), beside.lists[319].end(),
                            inside.lists[319].begin(), inside.lists[319].end()));
}
// Of 20 blocks 5 are the least: of every tile, or of the last one, whose quarter the others take.
TEST(ProxyAttn, TheLeastBudgetIsATilesOrTheHeads) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 320, 320, 2, 2, 32, 24, 8);
  const std::string rule = "block=16,tile=16,gamma=0,min_budget=80,sink=0,min_budget_of=";
  const RoutedRun tile = RunRouter(Policy(rule + "tile"), a);
  const RoutedRun head = RunRouter(Policy(rule + "head"), a);
  ASSERT_TRUE(tile.status.ok() && head.status.ok());
  EXPECT_EQ(tile.lists[319 * 2].size(), 6u * 16);
  EXPECT_EQ(head.lists[319 * 2].size(), 6u * 16);
  EXPECT_EQ(tile.lists[159 * 2].size(), 6u * 16);
  EXPECT_EQ(head.lists[159 * 2].size(), 4u * 16);  // ceil(10 / 4), and its own
}
TEST(ProxyAttn, NanScoresHaveNoSay) {
  const AttentionData clean = MakeAttentionData(DataKind::kNeedles, 300, 300, 4, 2, 32, 24, 9);
  for (const AttentionData& a : WithNans(clean, (100 * 4 + 1) * 32, 48 * 64 + 3)) {
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule.text), a);
  }
}
TEST(ProxyAttn, FewQueriesAreDense) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 15, 4, 2, 32, 24, 10);
  const std::string rule = "block=16,tile=16,gamma=0.1,min_budget=0";
  EXPECT_DOUBLE_EQ(RunRouter(Policy(rule), a).counters.density(), 1);
  EXPECT_LT(RunRouter(Policy(rule + ",least_queries=15"), a).counters.density(), 0.6);
}
TEST(ProxyAttn, SettingsThatMakeNoSenseAreRefused) {
  EXPECT_THAT(
      std::string(
          BuiltinRouters().attention.Create(Policy("block=16,stride=5")).status().message()),
      testing::HasSubstr("block=16 is not a multiple of stride=5"));
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 64, 4, 2, 32, 32, 11);
  EXPECT_THAT(std::string(RunRouter(Policy("groups=3"), a).status.message()),
              testing::HasSubstr("groups=3 does not divide the model's 2 KV heads"));
}
}  // namespace proxy_attn_test
SLUICE_END_NAMESPACE
