#include "sluice/routers/attention/biformer/biformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/biformer/biformer_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace biformer_test {
using Reference = attention::BiFormerReference;
using testing::HasSubstr;

AttentionData Image(int64_t tokens, uint64_t seed, int64_t heads = 4, int64_t kv_heads = 2,
                    DataKind kind = DataKind::kGaussian) {
  return MakeAttentionData(kind, tokens, tokens, heads, kv_heads, 16, 24, seed);
}

struct Case {
  int64_t tokens = 0;
  const char* text;
  Reference reference;
};
const Case kCases[] = {
    {196, "", {.width = 14}},
    {196, "height=14,width=14,k=1", {.width = 14, .k = 1}},
    {784, "width=28,k=16", {.width = 28, .k = 16}},
    {240, "height=12,regions=4,k=3", {.width = 20, .regions = 4, .k = 3}},
    // Regions that do not divide the grid, some without a token.
    {117, "height=9,width=13,regions=4,k=3", {.width = 13, .regions = 4, .k = 3}},
    {117, "width=13,regions=7,k=5", {.width = 13, .regions = 7, .k = 5}},
    {117,
     "width=13,regions=4,k=3,mean=cells",
     {.width = 13, .regions = 4, .k = 3, .mean_of_cells = true}},
    {9, "regions=5,k=4", {.width = 3, .regions = 5, .k = 4}},
    // A last row that is incomplete, or a last row of regions without a token.
    {237, "ragged=true,regions=5,k=6", {.width = 16, .regions = 5, .k = 6}},
    {203,
     "ragged=true,width=20,regions=5,k=6,mean=cells",
     {.width = 20, .regions = 5, .k = 6, .mean_of_cells = true}},
    {1, "k=4", {.width = 1}},
    // Regions of more than one tile.
    {900, "regions=3,k=2", {.width = 30, .regions = 3, .k = 2}},
};
std::string Policy(const char* text) {
  return *text == 0 ? "biformer" : absl::StrCat("biformer:", text);
}

TEST(BiFormer, ListsAreTheReferences) {
  for (const Case& c : kCases) {
    for (auto [heads, kv_heads] : {std::pair<int64_t, int64_t>{4, 4}, {6, 2}, {3, 1}}) {
      for (DType type : {DType::kF32, DType::kBF16}) {
        AttentionData a = Image(c.tokens, 1, heads, kv_heads);
        if (type != DType::kF32) a.Convert(type);
        ExpectListsOf(c.reference, Policy(c.text), a);
      }
    }
  }
}

// Four regions of 2 x 2 tokens. Queries of a region look along one axis, and the key of one token
// of a region points there.
TEST(BiFormer, AdjacencyOfATinyGridByHand) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 16, 16, 2, 2, 4, 4, 1);
  std::fill(a.q.begin(), a.q.end(), 0.0f);
  std::fill(a.k.begin(), a.k.end(), 0.0f);
  const auto at = [](int64_t token, int64_t head, int64_t x) { return (token * 2 + head) * 4 + x; };
  // Tokens 0 1 4 5 | 2 3 6 7 | 8 9 12 13 | 10 11 14 15 are regions 0 to 3.
  a.q[at(0, 0, 0)] = 1;   // region 0 looks along x = 0, by its first head
  a.q[at(7, 1, 1)] = 1;   // region 1 along x = 1, by its second
  a.q[at(12, 0, 2)] = 1;  // region 2 along x = 2
  a.q[at(10, 1, 3)] = 1;  // region 3 along x = 3
  a.k[at(14, 0, 0)] = 1;  // of region 3
  a.k[at(6, 1, 1)] = 1;   // of region 1
  a.k[at(1, 0, 2)] = 1;   // of region 0
  a.k[at(3, 1, 3)] = 1;   // of region 1
  const RoutedRun r = RunRouter("biformer:regions=2,k=1", a);
  ASSERT_TRUE(r.status.ok()) << r.status;
  const std::vector<uint32_t> region[] = {
      {0, 1, 4, 5}, {2, 3, 6, 7}, {8, 9, 12, 13}, {10, 11, 14, 15}};
  const int64_t sees[] = {3, 1, 0, 1};
  for (int64_t own = 0; own < 4; ++own) {
    for (uint32_t token : region[own]) {
      EXPECT_EQ(r.lists[token * 2], region[sees[own]]) << token;
      EXPECT_EQ(r.lists[token * 2 + 1], region[sees[own]]) << token;
    }
  }
}

TEST(BiFormer, TheOrderIsByRegionAndItsInverseTheIdentity) {
  for (const Case& c : kCases) {
    const AttentionData a = Image(c.tokens, 2);
    HarnessOptions o;
    o.see = [&](const AttentionPlan& plan) {
      const AttentionBranch& b = plan.branches[0];
      ASSERT_EQ(std::ssize(plan.key_perm), c.tokens);
      std::vector<int64_t> inverse(c.tokens, -1);
      for (int64_t i = 0; i < c.tokens; ++i) {
        EXPECT_EQ(plan.key_perm[i], static_cast<uint32_t>(b.q_order[i]));
        inverse[plan.key_perm[i]] = i;
        if (i == 0) continue;
        const int64_t before = c.reference.RegionOf(plan.key_perm[i - 1], c.tokens);
        const int64_t own = c.reference.RegionOf(plan.key_perm[i], c.tokens);
        EXPECT_TRUE(before < own || (before == own && plan.key_perm[i - 1] < plan.key_perm[i]));
      }
      for (int64_t t = 0; t < c.tokens; ++t) {
        ASSERT_GE(inverse[t], 0);
        EXPECT_EQ(plan.key_perm[inverse[t]], static_cast<uint32_t>(t));
      }
    };
    const RoutedRun r = RunRouter(Policy(c.text), a, o);
    ASSERT_TRUE(r.status.ok()) << r.status;
  }
}

TEST(BiFormer, AllRegionsArePlainAttention) {
  for (const auto& [tokens, policy] : {std::pair<int64_t, const char*>{196, "biformer:k=49"},
                                       {196, "biformer:k=-2"},
                                       {117, "biformer:width=13,k=49"},
                                       {117, "biformer:width=13,k=-2"},
                                       {203, "biformer:ragged=true,regions=3,k=9"},
                                       {16, "biformer:regions=1,k=1"}}) {
    const AttentionData a = Image(tokens, 3);
    const RoutedRun r = RunRouter(policy, a);
    ASSERT_TRUE(r.status.ok()) << r.status;
    const std::vector<double> want = attention::reference::WithoutMask(a.Inputs());
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(r.o[i], want[i], 2e-5) << policy;
    EXPECT_EQ(r.counters.exact_pairs, 4 * tokens * tokens);
    EXPECT_EQ(r.counters.density(), 1);
  }
}
// Every head attends with the scale that it is given, over what the sum over heads chose.
TEST(BiFormer, OutputsAreAttentionOverTheLists) {
  const AttentionData a = Image(117, 4);
  const RoutedRun r = RunRouter("biformer:width=13,regions=4,k=3", a);
  ASSERT_TRUE(r.status.ok()) << r.status;
  const AttentionInputs in = a.Inputs();
  for (int64_t i = 0; i < 117; ++i) {
    for (int64_t h = 0; h < 4; ++h) {
      const auto q = attention::reference::Query(in.q, i, h, in.scale);
      attention::reference::Vector logits;
      for (uint32_t s : r.lists[i * 4 + h])
        logits.push_back(
            attention::reference::Product(q, attention::reference::Key(in.k, s, h / 2)));
      const auto p = attention::reference::Softmax(logits);
      for (int64_t x = 0; x < 24; ++x) {
        double want = 0;
        for (size_t j = 0; j < p.size(); ++j)
          want += p[j] * in.v.Get(r.lists[i * 4 + h][j], h / 2, x);
        ASSERT_NEAR(r.o[(i * 4 + h) * 24 + x], want, 2e-5) << i;
      }
    }
  }
  EXPECT_LT(r.counters.density(), 0.4);
}

// What follows the last token in memory is NaN: read by no one.
TEST(BiFormer, WhatFillsTheGridIsNeverAttended) {
  const AttentionData a = Image(117, 5);
  std::vector<float> k(256 * 2 * 16, NAN);
  std::vector<float> v(256 * 2 * 24, NAN);
  std::copy(a.k.begin(), a.k.end(), k.begin());
  std::copy(a.v.begin(), a.v.end(), v.begin());
  HarnessOptions o;
  o.adjust = [&](SessionOptions&, AttentionInputs& in) {
    in.k.data = k.data();
    in.v.data = v.data();
  };
  for (const char* mean : {"tokens", "cells"}) {
    for (int64_t chosen : {3, 16}) {
      const std::string policy =
          absl::StrCat("biformer:width=13,regions=4,k=", chosen, ",mean=", mean);
      const RoutedRun r = RunRouter(policy, a, o);
      ASSERT_TRUE(r.status.ok()) << r.status;
      for (float x : r.o) ASSERT_TRUE(std::isfinite(x)) << policy;
      EXPECT_EQ(r.o, RunRouter(policy, a).o);
    }
  }
}

// Regions 0, 2, 4, ... have the keys of region 1, 3, 5, ...
TEST(BiFormer, TiesGoToTheFirstRegion) {
  AttentionData a = Image(196, 6);
  for (float& x : a.q) x = std::nearbyint(x);
  for (float& x : a.k) x = std::nearbyint(x);
  const Reference reference = {.width = 14, .k = 3};
  for (int64_t t = 0; t < 196; ++t) {
    const int64_t region = reference.RegionOf(t, 196);
    if (region % 7 % 2 == 1) std::copy_n(&a.k[(t - 2) * 32], 32, &a.k[t * 32]);
  }
  ExpectListsOf(reference, "biformer:k=3", a);
  std::fill(a.k.begin(), a.k.end(), 1.0f);
  const RoutedRun r = RunRouter("biformer:k=2", a);
  ASSERT_TRUE(r.status.ok());
  const std::vector<uint32_t> first = {0, 1, 2, 3, 14, 15, 16, 17};
  for (const std::vector<uint32_t>& list : r.lists) {
    // Where the sum of the queries is negative all scores tie just as well.
    EXPECT_EQ(list, first);
  }
}

TEST(BiFormer, NanRegionsSeeThemselvesAndAreSeenByNone) {
  const AttentionData clean = Image(196, 7);
  const Reference reference = {.width = 14};
  const int64_t token = 31;  // row 2, column 3: region 8
  const int64_t region = reference.RegionOf(token, 196);
  ASSERT_EQ(region, 8);
  for (const AttentionData& a : WithNans(clean, token * 64 + 5, token * 32 + 3)) {
    ExpectListsOf(reference, "biformer", a);
    const RoutedRun r = RunRouter("biformer", a);
    EXPECT_EQ(std::isnan(r.o[token * 4 * 24]), std::isnan(a.q[token * 64 + 5]));
    if (!std::isnan(a.k[token * 32 + 3])) continue;
    for (const std::vector<uint32_t>& list : r.lists) {
      EXPECT_THAT(list, testing::Not(testing::Contains(token)));
      EXPECT_EQ(list.size(), 16u);
    }
  }
}

// The choice is of all heads together: turning one head's queries around changes it for all.
TEST(BiFormer, HeadsShareAChoice) {
  AttentionData a = Image(196, 8);
  const RoutedRun before = RunRouter("biformer", a);
  for (int64_t t = 0; t < 196; ++t) {
    for (int64_t x = 0; x < 16; ++x) a.q[(t * 4 + 3) * 16 + x] *= -20;
  }
  const RoutedRun after = RunRouter("biformer", a);
  ASSERT_TRUE(before.status.ok() && after.status.ok());
  int64_t changed = 0;
  for (int64_t t = 0; t < 196; ++t) {
    for (int64_t h = 1; h < 4; ++h) EXPECT_EQ(after.lists[t * 4 + h], after.lists[t * 4]);
    changed += after.lists[t * 4] != before.lists[t * 4];
  }
  EXPECT_GT(changed, 98);
}

TEST(BiFormer, TheScaleIsTheHostsAndASettingGuardsIt) {
  const AttentionData a = Image(196, 9);  // four heads of width 16
  HarnessOptions full;
  full.adjust = [](SessionOptions&, AttentionInputs& in) { in.scale = 0.125f; };
  EXPECT_TRUE(RunRouter("biformer:scale=head", a).status.ok());
  EXPECT_TRUE(RunRouter("biformer:scale=width", a, full).status.ok());
  EXPECT_NE(RunRouter("biformer", a).o, RunRouter("biformer", a, full).o);
  EXPECT_THAT(
      std::string(RunRouter("biformer:scale=width", a).status.message()),
      HasSubstr("the host's logit scale is 0.25, and scale=width wants 0.125, 1 / sqrt(64)"));
  EXPECT_THAT(std::string(RunRouter("biformer:scale=head", a, full).status.message()),
              HasSubstr("scale=head wants 0.25, 1 / sqrt(16)"));
}

TEST(BiFormer, SettingsThatMakeNoSenseAreRefused) {
  const auto why = [](const char* policy) {
    return std::string(BuiltinRouters().attention.Create(policy).status().message());
  };
  EXPECT_THAT(why("biformer:k=50"), HasSubstr("k=50 of the 49 regions"));
  EXPECT_THAT(why("biformer:k=0"), HasSubstr("k=0 of the 49 regions"));
  EXPECT_THAT(why("biformer:k=-1"), HasSubstr("k=-1 of the 49 regions"));
  EXPECT_THAT(why("biformer:regions=0"), HasSubstr("regions"));
  EXPECT_THAT(why("biformer:k=-2,regions=3"), HasSubstr("of no use with k=-2"));
  EXPECT_THAT(why("biformer:ragged=true,height=3"), HasSubstr("leaves the number of rows open"));
  EXPECT_TRUE(why("biformer:regions=2,k=4").empty());
}
TEST(BiFormer, GridsThatAreNotTheTokensAreRefused) {
  const auto why = [](const char* policy, int64_t tokens) {
    return std::string(RunRouter(policy, Image(tokens, 1)).status.message());
  };
  EXPECT_THAT(why("biformer", 197), HasSubstr("197 tokens are no grid of height=0, width=0"));
  EXPECT_THAT(why("biformer:height=14,width=14", 195),
              HasSubstr("195 tokens are no grid of height=14, width=14"));
  EXPECT_THAT(why("biformer:width=13", 196), HasSubstr("196 tokens are no grid"));
  EXPECT_THAT(why("biformer:height=15", 196), HasSubstr("196 tokens are no grid"));
  EXPECT_THAT(why("biformer:width=300,regions=2", 196), HasSubstr("196 tokens are no grid"));
  EXPECT_EQ(why("biformer:ragged=true", 197), "");
}
// Its queries see later keys: a host that decodes must not get it unawares, and gets all tokens.
TEST(BiFormer, IsForEncoders) {
  const AttentionData a = Image(196, 10);
  SessionOptions s = HarnessSession("biformer", a, {});
  s.bidirectional = false;
  EXPECT_THAT(std::string(AttentionSession::Create(s).status().message()),
              HasSubstr("no causal mask"));
  s.policy = "refresh(2|biformer)";
  EXPECT_THAT(std::string(AttentionSession::Create(s).status().message()),
              HasSubstr("no causal mask"));
  HarnessOptions half;
  half.chunk = 98;
  EXPECT_TRUE(RunRouter("biformer:ragged=true", a, half).status.code() ==
              absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(RunRouter("biformer:ragged=true", a, half).status.message()),
              HasSubstr("takes all tokens in one call"));
  // By layer, as published: all of its parts are of one kind.
  EXPECT_TRUE(RunRouter("per_layer(2*biformer:k=1 | 2*biformer:k=-2)", a).status.ok());
  EXPECT_THAT(std::string(RunRouter("per_layer(2*biformer | 2*dense)", a).status.message()),
              HasSubstr("do not go together: the first has no causal mask"));
  EXPECT_THAT(std::string(RunRouter("per_layer(2*dense | 2*biformer)", a).status.message()),
              HasSubstr("do not go together: the second has no causal mask"));
}
}  // namespace biformer_test
SLUICE_END_NAMESPACE
