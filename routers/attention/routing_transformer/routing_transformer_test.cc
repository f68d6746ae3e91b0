#include "sluice/routers/attention/routing_transformer/routing_transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/routing_transformer/routing_transformer_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace routing_transformer_test {
using Reference = attention::RoutingTransformerReference;
struct Rule {
  const char* text;
  Reference reference;
  double local_share = 0.5;
};
const Rule kRules[] = {
    {"clusters=8,window=16", {.clusters = 8, .window = 16}},
    {"clusters=3,members=50,window=100,norm=l2,orphans=own",
     {.clusters = 3,
      .members = 50,
      .window = 100,
      .norm = Reference::kL2,
      .own_key_of_orphans = true}},
    {"clusters=16,members=7,local_share=0,norm=none,rope=after,cap=latest",
     {.clusters = 16,
      .members = 7,
      .norm = Reference::kNone,
      .before_rope = false,
      .cap = Reference::kLatest},
     0},
    {"clusters=5,local_share=0.25,orphans=own,cap=best",
     {.clusters = 5, .own_key_of_orphans = true, .cap = Reference::kBest},
     0.25},
    {"clusters=4,members=1000,local_share=0,window=1", {.clusters = 4, .members = 1000}, 0},
};
std::string Policy(const Rule& rule) {
  return absl::StrCat("routing_transformer:weights=synthetic,", rule.text);
}
std::string OnlinePolicy(const Rule& rule) {
  return absl::StrCat(Policy(rule), ",centroids=online");
}

// What the method's reference says of this data: centroids of layer 0 as the harness makes them.
Reference ReferenceOf(const Rule& rule, const AttentionData& a, bool online = false) {
  Reference r = rule.reference;
  r.local_heads = static_cast<int64_t>(rule.local_share * static_cast<double>(a.heads));
  if (online) return r;
  const std::string policy = Policy(rule);
  Spec spec = *ParseSpec(policy);
  std::erase_if(spec.options, [](const KeyValue& o) { return o.first == "weights"; });
  const auto* factory = *BuiltinRouters().attention.Find("routing_transformer");
  const SyntheticWeights weights(*factory->Weights(spec.options, a.Shape()), 1);
  r.centroids = *weights.ReadF32("routing_transformer.0.centroids",
                                 {static_cast<uint64_t>(a.d), static_cast<uint64_t>(r.clusters),
                                  static_cast<uint64_t>(a.heads - r.local_heads)});
  return r;
}
// Queries and keys from before RoPE that are not those after it.
struct BeforeRope {
  AttentionData data;
  explicit BeforeRope(const AttentionData& a)
      : data(MakeAttentionData(DataKind::kClustered, a.kv_len, a.q_count, a.heads, a.kv_heads, a.d,
                               a.dv, 77)) {}
  HarnessOptions Options(HarnessOptions o = {}) const {
    o.adjust = [this](SessionOptions&, AttentionInputs& in) {
      in.q_pre = data.Q();
      in.k_pre = data.K();
    };
    return o;
  }
};

TEST(RoutingTransformer, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    const BeforeRope pre(a);
    for (const Rule& rule : kRules)
      ExpectListsOf(ReferenceOf(rule, a), Policy(rule), a, pre.Options(c.Options()));
  }
}
// In one call: later ones go on from what earlier ones learned.
TEST(RoutingTransformer, OnlineListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(2);
    const BeforeRope pre(a);
    for (const char* more : {"", ",rounds=1,decay=0", ",rounds=2,decay=0.9"}) {
      for (const Rule& rule : kRules) {
        Reference want = ReferenceOf(rule, a, true);
        if (*more != 0) want.rounds = more[8] - '0';
        if (*more != 0) want.decay = want.rounds == 1 ? 0 : 0.9;
        ExpectListsOf(want, absl::StrCat(OnlinePolicy(rule), more), a, pre.Options());
      }
    }
  }
}
TEST(RoutingTransformer, OutputsAreMeansOverClusters) {
  for (auto [kv, q, heads, kv_heads] :
       {std::array<int64_t, 4>{230, 230, 4, 2}, {203, 60, 4, 1}, {203, 1, 4, 4}, {1, 1, 2, 1}}) {
    const AttentionData a =
        MakeAttentionData(DataKind::kNeedles, kv, q, heads, kv_heads, 32, 24, 3);
    const BeforeRope pre(a);
    for (const Rule& rule : kRules) {
      const RoutedRun r = RunRouter(Policy(rule), a, pre.Options());
      ASSERT_TRUE(r.status.ok()) << r.status;
      const Reference reference = ReferenceOf(rule, a);
      AttentionInputs in = a.Inputs();
      in.q_pre = pre.data.Q();
      in.k_pre = pre.data.K();
      for (int64_t h = 0; h < heads; ++h) {
        const auto of_queries = reference.Head(in, h);
        for (int64_t i = 0; i < q; ++i) {
          const auto want = Reference::Output(in, i, h, of_queries[i]);
          for (int64_t x = 0; x < 24; ++x)
            ASSERT_NEAR(r.o[(i * heads + h) * 24 + x], want[x], 2e-5) << rule.text << " " << i;
        }
      }
    }
  }
}
TEST(RoutingTransformer, TiesGoToTheEarliest) {
  const AttentionData a =
      WithTies(MakeAttentionData(DataKind::kGaussian, 333, 140, 4, 2, 16, 24, 4), 16);
  for (const char* rule : {"clusters=6,local_share=0,norm=none,rope=after,rounds=1,decay=0",
                           "clusters=6,local_share=0,norm=none,rope=after,rounds=1,decay=0.5"}) {
    const Reference want = {.clusters = 6,
                            .norm = Reference::kNone,
                            .before_rope = false,
                            .rounds = 1,
                            .decay = rule[std::strlen(rule) - 1] == '5' ? 0.5 : 0};
    ExpectListsOf(want,
                  absl::StrCat("routing_transformer:weights=synthetic,centroids=online,", rule), a);
  }
}
TEST(RoutingTransformer, NanQueriesKeepTheirKeyAndNanKeysAreInNoCluster) {
  for (int64_t q : {130, 1}) {
    const AttentionData clean = MakeAttentionData(DataKind::kNeedles, 300, q, 4, 2, 32, 24, 5);
    for (const AttentionData& a : WithNans(clean, 0, 200 * 64 + 3)) {
      for (const Rule& rule : kRules) {
        ExpectListsOf(ReferenceOf(rule, a), Policy(rule), a);
        const RoutedRun r = RunRouter(Policy(rule), a);
        const bool nan = std::isnan(a.q[0]);
        if (rule.local_share > 0) {  // whose window may hold the NaN key
          EXPECT_TRUE(!nan || std::isnan(r.o[0])) << rule.text;
          continue;
        }
        EXPECT_EQ(std::isnan(r.o[0]), nan) << rule.text;
        if (nan) {
          EXPECT_EQ(r.lists[0], std::vector<uint32_t>{static_cast<uint32_t>(300 - q)});
        }
      }
    }
  }
}

TEST(RoutingTransformer, OneClusterOfAllIsDense) {
  for (auto [kv, q] : {std::pair<int64_t, int64_t>{300, 300}, {277, 40}, {130, 1}, {3, 3}}) {
    const AttentionData a = MakeAttentionData(DataKind::kNeedles, kv, q, 4, 2, 32, 24, 6);
    const RoutedRun want = RunRouter("dense", a);
    for (const char* centroids : {"learned", "online"}) {
      const RoutedRun r = RunRouter(
          absl::StrCat("routing_transformer:weights=synthetic,clusters=1,local_share=0,centroids=",
                       centroids),
          a);
      ASSERT_TRUE(r.status.ok()) << r.status;
      EXPECT_EQ(r.lists, want.lists);
      EXPECT_EQ(r.counters.exact_pairs, want.counters.exact_pairs);
      for (size_t i = 0; i < want.o.size(); ++i) ASSERT_NEAR(r.o[i], want.o[i], 2e-5f);
    }
  }
}
// Four directions that tokens take in turn, and k-means begun from one token of each: every token
// is in one cluster, and attention over it is plain.
TEST(RoutingTransformer, MembershipsThatAreUniqueArePlainAttention) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 204, 204, 2, 1, 32, 24, 7);
  const auto direct = [](std::vector<float>& x, int64_t heads) {
    for (int64_t s = 0; s < 204; ++s) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t c = 0; c < 4; ++c) x[(s * heads + h) * 32 + c] = c == s % 4 ? 30.0f : 0.0f;
      }
    }
  };
  direct(a.q, 2);
  direct(a.k, 1);
  // It begins from keys 25, 76, 127, 178: directions 1, 0, 3, 2.
  const RoutedRun r = RunRouter(
      "routing_transformer:weights=synthetic,centroids=online,clusters=4,local_share=0", a);
  ASSERT_TRUE(r.status.ok()) << r.status;
  for (int64_t i = 0; i < 204; ++i) {
    for (int64_t h = 0; h < 2; ++h) {
      std::vector<uint32_t> want;
      for (int64_t s = i % 4; s <= i; s += 4) want.push_back(static_cast<uint32_t>(s));
      EXPECT_EQ(r.lists[i * 2 + h], want) << i;
      const auto o = Reference::Output(a.Inputs(), i, h, {want});
      for (int64_t x = 0; x < 24; ++x) ASSERT_NEAR(r.o[(i * 2 + h) * 24 + x], o[x], 1e-4);
    }
  }
}
// Every cluster has as many keys and queries as a balanced one, and centroids in another order make
// the same clusters.
TEST(RoutingTransformer, ClustersAreOfOneSizeAndTheirOrderChangesNothing) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 320, 320, 4, 2, 32, 24, 8);
  const Rule rule = {"clusters=8,members=40", {.clusters = 8, .members = 40}};
  const RoutedRun r = RunRouter(Policy(rule), a);
  ASSERT_TRUE(r.status.ok()) << r.status;
  Reference reference = ReferenceOf(rule, a);
  for (int64_t head = 2; head < 4; ++head) {
    const auto all = reference.CentroidsOf(a.Inputs(), head);
    int64_t queries = 0;
    for (const auto& centroid : all) {
      EXPECT_EQ(reference.TakenBy(centroid, reference.KeysOf(a.Inputs(), head)).size(), 40u);
      queries += std::ssize(reference.TakenBy(centroid, reference.QueriesOf(a.Inputs(), head)));
    }
    EXPECT_EQ(queries, 320);
  }
  for (int64_t head = 0; head < 2; ++head) {
    float* of_head = reference.centroids.data() + head * 8 * 32;
    for (int64_t c = 0; c < 4; ++c)
      std::swap_ranges(of_head + c * 32, of_head + (c + 1) * 32, of_head + (7 - c) * 32);
  }
  EXPECT_EQ(r.lists, reference.Lists(a.Inputs()));
}
// A prompt, then single tokens: they see the keys of their own centroid, old and new.
TEST(RoutingTransformer, DecodeGoesOnFromThePrompt) {
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 200, 200, 4, 2, 32, 24, 9);
  for (const Rule& rule : kRules) {
    HarnessOptions o;
    o.first_chunk = 150;
    o.chunk = 1;
    ExpectListsOf(ReferenceOf(rule, a), Policy(rule), a, o);
  }
}
TEST(RoutingTransformer, SettingsThatMakeNoSenseAreRefused) {
  const auto why = [](const std::string& policy) {
    return std::string(BuiltinRouters().attention.Create(policy).status().message());
  };
  EXPECT_THAT(why("routing_transformer"), testing::HasSubstr("weights=FILE, or centroids=online"));
  EXPECT_THAT(why("routing_transformer:centroids=online,clusters=0"),
              testing::HasSubstr("clusters"));
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 64, 4, 2, 32, 32, 6);
  HarnessOptions o;
  o.adjust = [](SessionOptions&, AttentionInputs& in) { in.k_pre = {}; };
  EXPECT_EQ(RunRouter("routing_transformer:centroids=online", a, o).status.code(),
            absl::StatusCode::kFailedPrecondition);
}
}  // namespace routing_transformer_test
SLUICE_END_NAMESPACE
