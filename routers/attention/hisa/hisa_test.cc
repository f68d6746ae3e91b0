#include "sluice/routers/attention/hisa/hisa.h"

#include <gtest/gtest.h>

#include "sluice/routers/attention/common/learned_index_reference.h"
#include "sluice/routers/attention/hisa/hisa_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/indexer_weights.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace hisa_test {
double MeanIoU(const RoutedRun& x, const RoutedRun& y) {
  double sum = 0;
  for (size_t i = 0; i < x.lists.size(); ++i) sum += IoU(x.lists[i], y.lists[i]);
  return sum / static_cast<double>(x.lists.size());
}
struct Rule {
  const char* text;
  attention::HisaReference reference;
};
const Rule kRules[] = {
    {"hisa:k=17,m=2,block=16", {.k = 17, .m = 2, .block = 16}},
    {"hisa:k=16,m=5,block=8", {.k = 16, .m = 5, .block = 8}},
    {"hisa:k=65,m=9,block=16", {.k = 65, .m = 9, .block = 16}},
    {"hisa:k=120,m=4,block=64", {.k = 120, .m = 4, .block = 64}},
    {"hisa:k=4096,m=600,block=8", {.k = 4096, .m = 600, .block = 8}},
};

// With an indexer of the host's, and with the attention's own queries and keys in its stead.
TEST(Hisa, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (bool trained : {false, true}) {
      IndexData index;
      HarnessOptions o = c.Options();
      if (trained)
        o.adjust = [&](SessionOptions& s, AttentionInputs& in) { index.Attach(s, in, 7, 24); };
      for (const Rule& rule : kRules) ExpectListsOf(rule.reference, rule.text, a, o);
    }
  }
}
TEST(Hisa, ListsOfATrainedIndexerAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (const Rule& rule : kRules) {
      const attention::WithLearnedIndex<attention::HisaReference> want = {
          SyntheticIndexer("hisa:index=learned", a, 0), rule.reference};
      ExpectListsOf(want, absl::StrCat(rule.text, ",weights=synthetic,index=learned"), a,
                    c.Options());
    }
  }
}
TEST(Hisa, TiesGoToTheLowestBlockAndToken) {
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
  for (const Rule& rule : kRules) {
    ExpectListsOf(rule.reference, rule.text, a);
    ExpectListsOf(rule.reference, rule.text, a, o);
  }
}
// A block with a NaN mean is no candidate unless it is forced, and a token of NaN is in no list.
TEST(Hisa, NanAndInfiniteScores) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 40, 4, 2, 32, 24, 3);
  IndexData index;
  HarnessOptions o;
  o.adjust = [&](SessionOptions& s, AttentionInputs& in) { index.Attach(s, in, 2, 8); };
  ASSERT_TRUE(RunRouter("hisa:k=16,m=5,block=8", a, o).status.ok());  // fills the index data
  for (int64_t s : {3, 50, 51, 130, 299}) {
    a.k[s * 64] = NAN;
    index.k[s * 8 + 1] = s == 51 ? INFINITY : NAN;
  }
  a.q[7 * 4 * 32] = NAN;
  index.q[9 * 2 * 8] = NAN;
  index.w[11 * 2] = NAN;
  for (const Rule& rule : kRules) {
    ExpectListsOf(rule.reference, rule.text, a);
    ExpectListsOf(rule.reference, rule.text, a, o);
  }
  EXPECT_TRUE(std::isnan(RunRouter(kRules[0].text, a).o[7 * 4 * 24]));
}
TEST(Hisa, EqualsDsaWhenEveryBlockIsKeptAndImprovesWithM) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 256, 60, 4, 2, 32, 32, 1);
  for (bool trained : {false, true}) {
    IndexData index;
    HarnessOptions o;
    if (trained)
      o.adjust = [&](SessionOptions& s, AttentionInputs& in) { index.Attach(s, in, 8, 16); };
    const RoutedRun dsa = RunRouter("dsa:k=16", a, o);
    EXPECT_EQ(RunRouter("hisa:k=16,m=16,block=16", a, o).lists, dsa.lists);
    double last = 0;
    for (const char* m : {"2", "4", "8", "12"}) {
      const RoutedRun h = RunRouter(absl::StrCat("hisa:k=16,block=16,m=", m), a, o);
      ASSERT_TRUE(h.status.ok());
      const double iou = MeanIoU(h, dsa);
      EXPECT_GE(iou, last - 0.02);
      last = iou;
    }
    EXPECT_GT(last, 0.6);
  }
}
TEST(Hisa, PlantedStructureIsFound) {
  const AttentionData a = MakeAttentionData(DataKind::kClustered, 2048, 64, 4, 2, 32, 32, 2);
  const RoutedRun dsa = RunRouter("dsa:k=128", a);
  const RoutedRun hisa = RunRouter("hisa:k=128,m=8,block=128", a);
  EXPECT_GT(MeanIoU(hisa, dsa), 0.9);
}
TEST(Hisa, RejectsABudgetTheBlocksCannotHold) {
  EXPECT_FALSE(BuiltinRouters().attention.Create("hisa:k=2048,m=16,block=128").ok());
}
}  // namespace hisa_test
SLUICE_END_NAMESPACE
