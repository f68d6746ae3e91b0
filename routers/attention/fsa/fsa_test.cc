#include "sluice/routers/attention/fsa/fsa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/fsa/fsa_reference.h"
#include "sluice/routers/attention/nsa/nsa_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace fsa_test {
using attention::FsaReference;
constexpr char kNone[] = "phi=mean,position=false";

// NSA's rule with the weights that the harness gives layer 2.
NsaReference RuleOf(const std::string& policy, bool learned, const AttentionData& a) {
  NsaReference r = {.l = 8, .stride = 4, .block = 16, .n = 4, .init = 1, .local = 2};
  if (!learned) return r;
  Spec spec = *ParseSpec(policy);
  std::erase_if(spec.options, [](const KeyValue& kv) { return kv.first == "weights"; });
  const auto* factory = *BuiltinRouters().attention.Find("fsa");
  const SyntheticWeights weights(*factory->Weights(spec.options, a.Shape()), 1);
  const auto d = static_cast<uint64_t>(a.d);
  const auto kv = static_cast<uint64_t>(a.kv_heads);
  r.phi = NsaReference::kLinear;
  r.position = *weights.ReadF32("nsa.2.position", {d, 8, kv});
  r.key_map = *weights.ReadF32("nsa.2.key_map", {8 * d, d, kv});
  return r;
}

TEST(Fsa, ListsAreNsasAndOutputsThoseOfInvertedLists) {
  const std::string rule = "l=8,stride=4,block=16,n=4";
  for (const ReferenceCase& c : ReferenceCases()) {
    if (c.dtype != DType::kF32) continue;  // outputs are compared
    for (bool learned : {true, false}) {
      for (const char* tile : {"1", "13", "64"}) {
        const std::string policy = absl::StrCat("fsa:weights=synthetic,", rule, ",tile=", tile,
                                                learned ? "" : ",phi=mean,position=false");
        const AttentionData a = c.Data(1);
        HarnessOptions o = c.Options();
        o.layer = 2;
        const RoutedRun r = RunRouter(policy, a, o);
        ASSERT_TRUE(r.status.ok()) << r.status;
        const NsaReference nsa = RuleOf(policy, learned, a);
        const AttentionInputs in = a.Inputs();
        const FsaReference fsa = {.block = 16};
        for (int64_t kv = 0; kv < a.kv_heads; ++kv) {
          std::vector<NsaReference::Vector> keys;
          for (int64_t i = 0; i * 4 + 8 <= a.kv_len; ++i) keys.push_back(nsa.Key(in, kv, i));
          FsaReference::Lists lists;
          for (int64_t i = 0; i < a.q_count; ++i) lists.push_back(nsa.Selected(in, i, kv, keys));
          for (int64_t h = kv * (a.heads / a.kv_heads); h < (kv + 1) * (a.heads / a.kv_heads);
               ++h) {
            const auto want = fsa.Attend(in, h, lists);
            for (int64_t i = 0; i < a.q_count; ++i) {
              ASSERT_EQ(r.lists[i * a.heads + h],
                        attention::reference::KeysOf(lists[i], 16, a.q_begin() + i))
                  << policy << ": query " << i << ", head " << h;
              for (int64_t x = 0; x < a.dv; ++x)
                ASSERT_NEAR(r.o[(i * a.heads + h) * a.dv + x], want[i][x], 5e-5) << policy;
            }
          }
        }
      }
    }
  }
}
// Whoever walks, in whatever tiles, over whatever cache: NSA's branch alone has the same bits.
TEST(Fsa, IsNsasBranchBitForBit) {
  for (const auto& [heads, kv_heads] : {std::pair(2, 2), {4, 2}, {8, 1}}) {
    for (int64_t block : {64, 128}) {
      for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
        AttentionData a =
            MakeAttentionData(DataKind::kClustered, 1200, 400, heads, kv_heads, 32, 24, 3);
        if (dtype != DType::kF32) a.Convert(dtype);
        const std::string rule =
            absl::StrCat(":weights=synthetic,l=32,stride=16,n=5,block=", block);
        HarnessOptions kv_major;
        kv_major.attend.mode = AttendMode::kKvMajor;
        const RoutedRun want = RunRouter(
            absl::StrCat("nsa", rule, ",gates=fixed,gate_cmp=0,gate_slc=1,gate_win=0"), a);
        const RoutedRun queries = RunRouter(absl::StrCat("fsa", rule), a);
        const RoutedRun blocks = RunRouter(absl::StrCat("fsa", rule), a, kv_major);
        const RoutedRun unions = RunRouter(absl::StrCat("fsa", rule, ",tile=64"), a);
        ASSERT_TRUE(want.status.ok()) << want.status;
        ASSERT_TRUE(blocks.status.ok()) << blocks.status;
        EXPECT_LT(want.counters.density(), 0.7);
        for (const RoutedRun* r : {&queries, &blocks, &unions}) {
          EXPECT_EQ(r->o, want.o) << heads << " " << block << " " << DTypeName(dtype);
          EXPECT_EQ(r->lists, want.lists);
          EXPECT_EQ(r->counters.exact_pairs, want.counters.exact_pairs);
        }
        // Blocks are read once for all of their queries.
        EXPECT_LT(blocks.counters.kv_bytes, queries.counters.kv_bytes / 8);
        EXPECT_LT(unions.counters.kv_bytes, queries.counters.kv_bytes / 4);
      }
    }
  }
}
// Inverting lists loses and invents nothing.
TEST(Fsa, InvertedListsHaveAsManyEntries) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 333, 250, 4, 2, 32, 24, 4);
  const std::string rule = absl::StrCat("fsa:weights=synthetic,l=8,stride=4,block=16,n=4,", kNone);
  std::vector<std::vector<std::vector<int64_t>>> by_query(2), by_block(2);  // [kv][query][]
  const auto read = [](const AttentionPlan& plan,
                       std::vector<std::vector<std::vector<int64_t>>>& to) {
    const AttentionBranch& b = plan.branches[0];
    for (int64_t kv = 0; kv < 2; ++kv) {
      to[kv].assign(plan.q_count, {});
      for (int64_t t = 0; t < b.num_tiles; ++t) {
        const int64_t row = b.row_of(kv, t);
        for (uint32_t e = 0; e < b.rows.count[row]; ++e) {
          const auto at = static_cast<size_t>(b.rows.begin[row] + e);
          for (int64_t i = t * b.tile; i < std::min(plan.q_count, (t + 1) * b.tile); ++i) {
            if (b.row_mask.empty() || (b.row_mask[at] >> (i - t * b.tile) & 1) != 0)
              to[kv][i].push_back(b.entries[at].start);
          }
        }
      }
    }
  };
  HarnessOptions o;
  o.see = [&](const AttentionPlan& plan) { read(plan, by_query); };
  ASSERT_TRUE(RunRouter(rule, a, o).status.ok());
  o.see = [&](const AttentionPlan& plan) { read(plan, by_block); };
  ASSERT_TRUE(RunRouter(rule + ",tile=64", a, o).status.ok());
  EXPECT_EQ(by_query, by_block);
  for (int64_t kv = 0; kv < 2; ++kv) {
    const auto chosen = FsaReference::Invert(by_block[kv], (333 + 15) / 16);
    int64_t inverted = 0;
    int64_t listed = 0;
    for (const auto& slots : chosen) inverted += std::ssize(slots);
    for (int64_t i = 0; i < 250; ++i) {
      EXPECT_EQ(std::ssize(by_query[kv][i]), std::min<int64_t>(4, (83 + i) / 16 + 1));
      listed += std::ssize(by_query[kv][i]);
    }
    EXPECT_EQ(inverted, listed);
    // Every query chose the first block and its own.
    EXPECT_EQ(std::ssize(chosen[0]), 250);
    EXPECT_EQ(std::ssize(chosen[20]), 13);
  }
}
// A NaN leaves its group nothing but the forced blocks, and comes out as NaN where it is seen.
TEST(Fsa, NanScoresAreNotSelected) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 300, 4, 2, 32, 24, 5);
  a.q[(200 * 4 + 1) * 32] = NAN;  // head 1, of the first group
  const RoutedRun r =
      RunRouter(absl::StrCat("fsa:weights=synthetic,l=8,stride=4,block=16,n=5,", kNone), a);
  ASSERT_TRUE(r.status.ok()) << r.status;
  EXPECT_EQ(r.lists[200 * 4], attention::reference::KeysOf({0, 11, 12}, 16, 200));
  EXPECT_EQ(r.lists[200 * 4 + 1], r.lists[200 * 4]);
  EXPECT_EQ(std::ssize(r.lists[200 * 4 + 2]), 4 * 16 + 200 % 16 + 1);
  EXPECT_FALSE(std::isnan(r.o[200 * 4 * 24]));
  EXPECT_TRUE(std::isnan(r.o[(200 * 4 + 1) * 24]));
}
TEST(Fsa, ConfigsThatMakeNoSenseAreRefused) {
  const auto why = [](const std::string& policy) {
    return std::string(BuiltinRouters().attention.Create(policy).status().message());
  };
  EXPECT_THAT(why("fsa"), testing::HasSubstr("weights=FILE, or phi=mean,position=false"));
  EXPECT_THAT(why(absl::StrCat("fsa:l=12,stride=8,", kNone)),
              testing::HasSubstr("l=12 must be a multiple of stride=8"));
  EXPECT_THAT(why(absl::StrCat("fsa:block=48,", kNone)), testing::HasSubstr("block=48"));
  EXPECT_THAT(why(absl::StrCat("fsa:tile=65,", kNone)), testing::HasSubstr("tile"));
  EXPECT_TRUE(BuiltinRouters().attention.Create(absl::StrCat("fsa:", kNone)).ok());
  // A checkpoint of another model.
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 64, 4, 2, 32, 32, 6);
  HarnessOptions o;
  o.adjust = [](SessionOptions&, AttentionInputs& in) { in.k_pre = {}; };
  EXPECT_EQ(RunRouter("fsa:weights=synthetic", a, o).status.code(),
            absl::StatusCode::kFailedPrecondition);
}
}  // namespace fsa_test
SLUICE_END_NAMESPACE
