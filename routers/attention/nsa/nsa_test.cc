#include "sluice/routers/attention/nsa/nsa.h"

#include <gtest/gtest.h>

#include "sluice/routers/attention/nsa/nsa_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace nsa_test {
constexpr char kSmall[] = "nsa:weights=synthetic,l=8,stride=4,block=16,n=4,local=2,window=20";
constexpr char kPlain[] =
    "nsa:weights=synthetic,phi=mean,position=false,gates=fixed,l=8,stride=4,block=16";

// The reference with the weights that the harness gives layer 2.
NsaReference ReferenceOf(const std::string& policy, NsaReference::Phi phi, bool position,
                         const AttentionData& a) {
  Spec spec = *ParseSpec(policy);
  std::erase_if(spec.options, [](const KeyValue& kv) { return kv.first == "weights"; });
  const auto* factory = *BuiltinRouters().attention.Find("nsa");
  const SyntheticWeights weights(*factory->Weights(spec.options, a.Shape()), 1);
  const auto u = [](int64_t n) { return static_cast<uint64_t>(n); };
  const uint64_t d = u(a.d);
  const uint64_t dv = u(a.dv);
  const uint64_t kv = u(a.kv_heads);
  NsaReference r = {
      .l = 8, .stride = 4, .block = 16, .n = 4, .init = 1, .local = 2, .window = 20, .phi = phi};
  if (position) r.position = *weights.ReadF32("nsa.2.position", {d, 8, kv});
  if (phi == NsaReference::kWeighted) {
    r.key_map = *weights.ReadF32("nsa.2.key_map", {8, kv});
    r.value_map = *weights.ReadF32("nsa.2.value_map", {8, kv});
  } else if (phi == NsaReference::kLinear) {
    r.key_map = *weights.ReadF32("nsa.2.key_map", {8 * d, d, kv});
    r.value_map = *weights.ReadF32("nsa.2.value_map", {8 * dv, dv, kv});
  }
  r.gate = *weights.ReadF32("nsa.2.gate", {u(a.width), u(a.heads) * 3});
  r.gate_bias = *weights.ReadF32("nsa.2.gate_bias", {u(a.heads) * 3});
  return r;
}

TEST(Nsa, ListsAndOutputsAreTheReferences) {
  struct Case {
    DataKind kind;
    int64_t kv, q, heads, kv_heads;
  };
  const std::pair<const char*, NsaReference::Phi> maps[] = {{"mean", NsaReference::kMean},
                                                            {"weighted", NsaReference::kWeighted},
                                                            {"linear", NsaReference::kLinear}};
  for (const auto& [name, phi] : maps) {
    for (const Case& c :
         {Case{DataKind::kNeedles, 150, 150, 4, 2}, Case{DataKind::kClustered, 333, 50, 4, 1},
          Case{DataKind::kGaussian, 203, 1, 2, 2}, Case{DataKind::kGaussian, 5, 5, 2, 1}}) {
      for (bool position : {true, false}) {
        const AttentionData a =
            MakeAttentionData(c.kind, c.kv, c.q, c.heads, c.kv_heads, 16, 24, 41);
        const std::string policy =
            absl::StrCat(kSmall, ",phi=", name, ",position=", position ? "true" : "false");
        HarnessOptions o;
        o.layer = 2;
        const RoutedRun r = RunRouter(policy, a, o);
        ASSERT_TRUE(r.status.ok()) << r.status;
        const NsaReference reference = ReferenceOf(policy, phi, position, a);
        const AttentionInputs in = a.Inputs();
        const auto keys = reference.Table(in, true);
        const auto values = reference.Table(in, false);
        for (int64_t i = 0; i < c.q; ++i) {
          for (int64_t h = 0; h < c.heads; ++h) {
            const NsaReference::Row want = reference.Query(in, i, h, keys, values);
            ASSERT_EQ(r.lists[i * c.heads + h], want.keys) << policy << " " << i << " " << h;
            for (int64_t x = 0; x < 24; ++x)
              ASSERT_NEAR(r.o[(i * c.heads + h) * 24 + x], want.o[x], 5e-5) << policy << " " << i;
          }
        }
      }
    }
  }
}
TEST(Nsa, EachBranchAloneCanBeDense) {
  for (auto [kv, q] : {std::pair<int64_t, int64_t>{300, 300}, {277, 40}, {130, 1}, {3, 3}}) {
    const AttentionData a = MakeAttentionData(DataKind::kNeedles, kv, q, 4, 2, 32, 24, 1);
    const RoutedRun want = RunRouter("dense", a);
    for (const char* gates : {",gate_cmp=0,gate_slc=1,gate_win=0,n=100",
                              ",gate_cmp=0,gate_slc=0,gate_win=1,window=300"}) {
      const RoutedRun r = RunRouter(absl::StrCat(kPlain, gates), a);
      ASSERT_TRUE(r.status.ok()) << r.status;
      for (size_t i = 0; i < want.o.size(); ++i) ASSERT_NEAR(r.o[i], want.o[i], 2e-5f) << gates;
      EXPECT_EQ(r.counters.exact_pairs, want.counters.exact_pairs) << gates;
      EXPECT_EQ(r.counters.summary_pairs, 0);
    }
  }
}
TEST(Nsa, FewerKeysThanABlockCompressToNothing) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 7, 7, 4, 2, 32, 24, 2);
  const RoutedRun r = RunRouter(absl::StrCat(kPlain, ",gate_cmp=1,gate_slc=0,gate_win=0"), a);
  ASSERT_TRUE(r.status.ok()) << r.status;
  for (float x : r.o) EXPECT_EQ(x, 0);
  // And a query before the first complete block has none either.
  const AttentionData b = MakeAttentionData(DataKind::kGaussian, 9, 9, 4, 2, 32, 24, 2);
  const RoutedRun s = RunRouter(absl::StrCat(kPlain, ",gate_cmp=1,gate_slc=0,gate_win=0"), b);
  for (int64_t i = 0; i < 7 * 4 * 24; ++i) EXPECT_EQ(s.o[i], 0);
  EXPECT_NE(s.o[7 * 4 * 24], 0);
  EXPECT_EQ(s.counters.summary_pairs, 2 * 4);
}
TEST(Nsa, StencilCountsSharedStrides) {
  const attention::OverlapStencil paper = attention::OverlapStencil::Make(32, 16, 64);
  EXPECT_EQ(paper.weight, (std::vector<float>{1, 2, 2, 2, 1}));
  for (auto [l, stride, block] :
       {std::array<int64_t, 3>{32, 16, 64}, {8, 4, 16}, {16, 16, 16}, {32, 8, 32}, {12, 4, 36}}) {
    const attention::OverlapStencil s = attention::OverlapStencil::Make(l, stride, block);
    std::vector<float> p;
    for (int64_t i = 0; i < 50; ++i)
      p.push_back(static_cast<float>(RandomUniform({9, 0, 0, 0, static_cast<uint64_t>(i)})));
    const int64_t blocks = (49 * stride + l - 1) / block + 1;
    std::vector<float> got(blocks);
    s.AddTo(p.data(), 50, blocks, got.data());
    for (int64_t j = 0; j < blocks; ++j) {
      double keys = 0;  // shared keys over the stride
      double sums = 0;  // the paper's double sum
      for (int64_t i = 0; i < 50; ++i) {
        const int64_t shared =
            std::min(i * stride + l, (j + 1) * block) - std::max(i * stride, j * block);
        keys +=
            p[i] * static_cast<double>(std::max<int64_t>(0, shared)) / static_cast<double>(stride);
      }
      for (int64_t m = 0; m < block / stride; ++m) {
        for (int64_t n = 0; n < l / stride; ++n) {
          const int64_t at = block / stride * j + m - n;
          if (at >= 0 && at < 50) sums += p[at];
        }
      }
      EXPECT_NEAR(got[j], keys, 1e-5);
      EXPECT_NEAR(got[j], sums, 1e-5);
    }
    if (l == block && l == stride) {
      EXPECT_EQ(s.weight, std::vector<float>{1});
    }
  }
}
TEST(Nsa, TilesAndChunksChangeNoList) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 230, 230, 4, 2, 32, 24, 3);
  const RoutedRun want = RunRouter(absl::StrCat(kSmall, ",tile=1"), a);
  ASSERT_TRUE(want.status.ok()) << want.status;
  for (int64_t tile : {1, 5, 16, 64}) {
    for (int64_t chunk : {0, 1, 37, 64}) {
      HarnessOptions o;
      o.chunk = chunk;
      const RoutedRun r = RunRouter(absl::StrCat(kSmall, ",tile=", tile), a, o);
      ASSERT_TRUE(r.status.ok()) << r.status;
      EXPECT_EQ(r.lists, want.lists) << tile << " " << chunk;
      for (size_t i = 0; i < r.o.size(); ++i) ASSERT_NEAR(r.o[i], want.o[i], 2e-5f);
      EXPECT_EQ(r.counters.summary_pairs, want.counters.summary_pairs);
    }
  }
}
TEST(Nsa, AppendedRowsAreThoseOfOneCall) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 200, 4, 2, 32, 24, 4);
  const auto table = [&](int64_t chunk) {
    std::vector<float> rows;
    HarnessOptions o;
    o.chunk = chunk;
    o.see = [&](const AttentionPlan& plan) {
      if (plan.kv_len < 200) return;
      ASSERT_EQ(plan.tables.size(), 1u);
      const SummaryTable& t = plan.tables[0];
      EXPECT_EQ(t.rows(), (200 - 8) / 4 + 1);
      rows.clear();
      for (int64_t r = 0; r < t.rows(); ++r) {
        for (int64_t kv = 0; kv < 2; ++kv) {
          for (int64_t x = 0; x < 32; ++x) rows.push_back(t.k.Get(r, kv, x));
          for (int64_t x = 0; x < 24; ++x) rows.push_back(t.v.Get(r, kv, x));
        }
      }
    };
    EXPECT_TRUE(RunRouter(kSmall, a, o).status.ok());
    return rows;
  };
  const std::vector<float> whole = table(0);
  EXPECT_EQ(whole.size(), 49u * 2 * 56);
  EXPECT_EQ(table(1), whole);
  EXPECT_EQ(table(23), whole);
}
TEST(Nsa, GroupsShareListsAndPairsFall) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 512, 64, 4, 2, 32, 32, 5);
  const std::string policy = absl::StrCat(kPlain, ",gate_cmp=0,gate_slc=1,gate_win=0,n=");
  const RoutedRun few = RunRouter(policy + "4", a);
  const RoutedRun more = RunRouter(policy + "9", a);
  ASSERT_TRUE(few.status.ok()) << few.status;
  for (int64_t i = 0; i < 64; ++i) {
    EXPECT_EQ(few.lists[i * 4], few.lists[i * 4 + 1]);
    EXPECT_EQ(few.lists[i * 4 + 2], few.lists[i * 4 + 3]);
    EXPECT_LE(few.lists[i * 4].size(), 4u * 16);
    for (int64_t h = 0; h < 4; ++h) {
      const auto& small = few.lists[i * 4 + h];
      const auto& large = more.lists[i * 4 + h];
      EXPECT_TRUE(std::includes(large.begin(), large.end(), small.begin(), small.end()));
    }
  }
  EXPECT_LT(few.counters.exact_pairs, more.counters.exact_pairs);
  EXPECT_LT(few.counters.density(), 0.15);
}
TEST(Nsa, ConfigsThatMakeNoSenseAreRefused) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 64, 4, 2, 32, 32, 6);
  for (const char* bad : {",l=12,stride=8", ",l=32,block=48", ",gate_cmp=0.3"}) {
    EXPECT_FALSE(RunRouter(absl::StrCat("nsa:weights=synthetic", bad), a).status.ok()) << bad;
  }
  HarnessOptions o;
  o.adjust = [](SessionOptions&, AttentionInputs& in) { in.hidden = {}; };
  EXPECT_EQ(RunRouter(kSmall, a, o).status.code(), absl::StatusCode::kFailedPrecondition);
}
}  // namespace nsa_test
SLUICE_END_NAMESPACE
