#include "sluice/routers/attention/dsa/dsa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/common/learned_index_reference.h"
#include "sluice/routers/attention/dsa/dsa_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/indexer_weights.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace dsa_test {
std::string Dsa(int64_t k) { return absl::StrCat("dsa:k=", k); }

// With an indexer of the host's, and with the attention's own queries and keys in its stead.
TEST(Dsa, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (bool trained : {false, true}) {
      IndexData index;
      HarnessOptions o = c.Options();
      if (trained)
        o.adjust = [&](SessionOptions& s, AttentionInputs& in) { index.Attach(s, in, 7, 24); };
      for (int64_t k : {1, 50, 230, 4096}) ExpectListsOf(attention::DsaReference{k}, Dsa(k), a, o);
    }
  }
}
// In whole numbers, with an indexer of the host's, one of the weights', and without one.
TEST(Dsa, ListsInFewBitsAreTheReferences) {
  const std::vector<ReferenceCase> cases = ReferenceCases();
  for (const auto& [score, limit] : {std::pair{"int8", 127}, {"int4", 7}}) {
    // Heads in groups of three, chunks that begin anywhere, steps, keys in half precision.
    for (size_t c : {1, 3, 5, 6}) {
      const AttentionData a = cases[c].Data(1);
      attention::DsaReference want{.k = 50, .limit = limit};
      const std::string policy = absl::StrCat(Dsa(50), ",score=", score);
      IndexData index;
      HarnessOptions o = cases[c].Options();
      ExpectListsOf(want, policy, a, o);
      ExpectListsOf(
          attention::WithLearnedIndex<attention::DsaReference>{
              SyntheticIndexer("dsa:index=learned", a, 0), want},
          absl::StrCat(policy, ",weights=synthetic,index=learned"), a, o);
      o.adjust = [&](SessionOptions& s, AttentionInputs& in) { index.Attach(s, in, 7, 24); };
      ExpectListsOf(want, policy, a, o);
      for (double rescore : {0.1, 1.0}) {
        want.rescore = rescore;
        ExpectListsOf(want, absl::StrCat(policy, ",rescore=", rescore), a, o);
      }
    }
  }
}
// Eight bits find nearly the tokens that single precision finds, four most of them.
TEST(Dsa, FewBitsFindNearlyTheSame) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 1024, 64, 4, 2, 64, 32, 1);
  const RoutedRun exact = RunRouter(Dsa(128), a);
  const auto found = [&](const char* score) {
    const RoutedRun run = RunRouter(absl::StrCat(Dsa(128), ",score=", score), a);
    double sum = 0;
    for (size_t i = 0; i < run.lists.size(); ++i) sum += IoU(run.lists[i], exact.lists[i]);
    return sum / static_cast<double>(run.lists.size());
  };
  EXPECT_GT(found("int8"), 0.97);
  EXPECT_GT(found("int4"), 0.75);
  EXPECT_LT(found("int4"), found("int8"));
  EXPECT_GT(found("int4,rescore=0.25"), 0.95);
  EXPECT_GT(found("int8,rescore=0.1"), 0.999);
}
// With the projections of weights, of every layer its own.
TEST(Dsa, ListsOfATrainedIndexerAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (int layer : {0, 3}) {
      HarnessOptions o = c.Options();
      o.layer = layer;
      for (float base : {0.0f, 500.0f}) {
        o.adjust = [&](SessionOptions& s, AttentionInputs& in) {
          s.width = 0;
          in.hidden = {};
          in.q_pre = {};
          in.k_pre = {};
          in.rope_base = base;
        };
        for (int64_t k : {1, 50, 230}) {
          const attention::WithLearnedIndex<attention::DsaReference> want = {
              SyntheticIndexer("dsa:index=learned", a, layer), {k}};
          ExpectListsOf(want, absl::StrCat(Dsa(k), ",weights=synthetic,index=learned"), a, o);
        }
      }
    }
  }
}
TEST(Dsa, TrainedIndexersOfOtherModelsAreRefused) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 64, 4, 2, 32, 32, 6);
  const auto why = [](const absl::Status& s) { return std::string(s.message()); };
  EXPECT_THAT(why(BuiltinRouters().attention.Create("dsa:index=learned").status()),
              testing::HasSubstr("give weights=FILE, or index=given"));
  EXPECT_THAT(why(RunRouter("dsa:weights=synthetic", a).status),
              testing::HasSubstr("index=given reads none"));
  const AttentionShape other = {.max_queries = 64,
                                .max_kv = 64,
                                .heads = 8,
                                .kv_heads = 2,
                                .head_dim = 32,
                                .value_dim = 32,
                                .layers = 4};
  Registry methods;
  ASSERT_TRUE(AddBuiltinRouters(methods).ok());
  ASSERT_TRUE(WithSyntheticWeights("dsa:weights=synthetic,index=learned", other, 1, methods).ok());
  HarnessOptions o;
  o.methods = &methods;
  EXPECT_THAT(why(RunRouter("dsa:weights=synthetic,index=learned", a, o).status),
              testing::HasSubstr("an indexer of 4 layers, 8/2 heads of width 32; the model has 4"));
}
TEST(Dsa, ScoresThatLeaveNoDoubtAreNotTakenAgain) {
  const absl::Status s = BuiltinRouters().attention.Create("dsa:rescore=0.25").status();
  EXPECT_THAT(std::string(s.message()),
              testing::HasSubstr("rescore=0.25 with score=f32, which leaves no doubt"));
  EXPECT_FALSE(BuiltinRouters().attention.Create("hisa:rescore=0.25").ok());
}
TEST(Dsa, TiesGoToTheLowestToken) {
  const AttentionData a =
      WithTies(MakeAttentionData(DataKind::kGaussian, 333, 100, 4, 2, 16, 24, 2), 16);
  IndexData index;
  HarnessOptions o;
  o.adjust = [&](SessionOptions& s, AttentionInputs& in) {
    index.Attach(s, in, 4, 8);
    for (std::vector<float>* x : {&index.q, &index.w, &index.k}) {
      for (float& e : *x) e = std::nearbyint(e);
    }
  };
  for (int64_t k : {3, 20, 90, 200}) {
    ExpectListsOf(attention::DsaReference{k}, Dsa(k), a);
    ExpectListsOf(attention::DsaReference{k}, Dsa(k), a, o);
  }
}
// ReLU makes no number of NaN: such tokens are in no list, nor are those of score -inf. What a NaN
// query attends to is NaN.
TEST(Dsa, NanAndInfiniteScores) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 40, 4, 2, 32, 24, 3);
  IndexData index;
  HarnessOptions o;
  o.adjust = [&](SessionOptions& s, AttentionInputs& in) { index.Attach(s, in, 2, 8); };
  ASSERT_TRUE(RunRouter(Dsa(50), a, o).status.ok());  // fills the index data
  for (int64_t s = 0; s < 300; s += 5) {
    a.k[s * 64] = NAN;
    index.k[s * 8 + 1] = s % 2 == 0 ? NAN : INFINITY;
  }
  a.q[7 * 4 * 32] = NAN;
  index.q[9 * 2 * 8] = NAN;
  index.w[11 * 2] = NAN;
  for (int64_t k : {50, 280, 4096}) {
    ExpectListsOf(attention::DsaReference{k}, Dsa(k), a);
    ExpectListsOf(attention::DsaReference{k}, Dsa(k), a, o);
    ExpectListsOf(attention::DsaReference{k, 127}, Dsa(k) + ",score=int8", a);
    ExpectListsOf(attention::DsaReference{k, 7}, Dsa(k) + ",score=int4", a, o);
  }
  EXPECT_TRUE(std::isnan(RunRouter(Dsa(50), a).o[7 * 4 * 24]));
}
TEST(Dsa, ScalingTheWeightsOfATokenChangesNothing) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 40, 4, 2, 32, 32, 1);
  IndexData index;
  HarnessOptions o;
  o.adjust = [&](SessionOptions& s, AttentionInputs& in) { index.Attach(s, in, 8, 16); };
  const RoutedRun before = RunRouter("dsa:k=50", a, o);
  ASSERT_TRUE(before.status.ok()) << before.status;
  for (float& w : index.w) w *= 4;
  EXPECT_EQ(RunRouter("dsa:k=50", a, o).lists, before.lists);
  for (float& w : index.w) w = -w;
  EXPECT_NE(RunRouter("dsa:k=50", a, o).lists, before.lists);
}
TEST(Dsa, RefusesIndexInputsOfAnotherShape) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 40, 4, 2, 32, 32, 1);
  IndexData index;
  HarnessOptions o;
  o.adjust = [&](SessionOptions& s, AttentionInputs& in) {
    index.Attach(s, in, 8, 16);
    in.index.k.dim = 15;
  };
  EXPECT_FALSE(RunRouter("dsa:k=50", a, o).status.ok());
}
}  // namespace dsa_test
SLUICE_END_NAMESPACE
