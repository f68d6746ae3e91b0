#include "sluice/routers/attention/hisa/hisa.h"

#include <gtest/gtest.h>

#include "sluice/routers/attention/common/learned_index_reference.h"
#include "sluice/routers/attention/dsa/dsa_reference.h"
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
// With its blocks chosen by bounds.
Rule ByBounds(const Rule& rule, std::string& text) {
  Rule by = rule;
  by.reference.bounds = true;
  text = absl::StrCat(rule.text, ",bound=max");
  by.text = text.c_str();
  return by;
}
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
      for (size_t rule : {1, 3}) {
        std::string text;
        const Rule by = ByBounds(kRules[rule], text);
        ExpectListsOf(by.reference, by.text, a, o);
      }
    }
  }
}
// What is left out scores no more than the least bound of the blocks that were kept for theirs.
TEST(Hisa, NoTokenAboveTheKeptBoundsIsLeftOut) {
  for (bool trained : {false, true}) {
    const AttentionData a = MakeAttentionData(DataKind::kNeedles, 400, 60, 4, 2, 32, 24, 5);
    IndexData index;
    AttentionInputs in = a.Inputs();
    SessionOptions session;
    HarnessOptions o;
    o.adjust = [&](SessionOptions& s, AttentionInputs& x) {
      if (trained) index.Attach(s, x, 5, 16);
    };
    o.adjust(session, in);
    constexpr int64_t kBlock = 8;
    constexpr int64_t kBlocks = 6;
    // All candidates are kept, so that lists show which blocks were chosen.
    const RoutedRun run = RunRouter("hisa:k=40,m=6,block=8,bound=max", a, o);
    ASSERT_TRUE(run.status.ok()) << run.status;
    int64_t left_out = 0;
    for (int64_t i = 0; i < in.q.rows; ++i) {
      const int64_t last = in.q_begin + i;
      std::vector<double> bound;
      for (int64_t b = 0; b * kBlock <= last; ++b)
        bound.push_back(attention::HisaReference::Bound(in, i, b * kBlock,
                                                        std::min(last + 1, (b + 1) * kBlock)));
      std::vector<double> inner(bound.begin() + 1, bound.end() - 1);  // first and own are forced
      std::sort(inner.begin(), inner.end(), std::greater<>());
      const double kept = inner[kBlocks - 3];
      std::vector<double> scores;
      for (int64_t s = 0; s <= last; ++s) {
        scores.push_back(attention::DsaReference::Score(in, i, s));
        EXPECT_LE(scores.back(), bound[s / kBlock] + 1e-9);
      }
      // Of the tokens above the threshold only those may be missing that 40 better ones displace.
      const std::vector<uint32_t>& list = run.lists[i * a.heads];
      double least = HUGE_VAL;
      for (uint32_t s : list) least = std::min(least, scores[s]);
      for (int64_t s = 0; s <= last; ++s) {
        const bool listed = std::binary_search(list.begin(), list.end(), static_cast<uint32_t>(s));
        if (scores[s] > kept) EXPECT_TRUE(listed || scores[s] <= least) << i << " " << s;
        left_out += !listed && scores[s] > least;
      }
    }
    // It is a filter still.
    EXPECT_GT(left_out, 0);
  }
}
TEST(Hisa, ListsInFewBitsAreTheReferences) {
  const std::vector<ReferenceCase> cases = ReferenceCases();
  for (const auto& [score, limit] : {std::pair{"int8", 127}, {"int4", 7}}) {
    // Heads in groups of three, chunks that begin anywhere, steps, keys in half precision.
    for (size_t c : {1, 3, 5, 6}) {
      const AttentionData a = cases[c].Data(1);
      IndexData index;
      for (bool trained : {false, true}) {
        HarnessOptions o = cases[c].Options();
        if (trained)
          o.adjust = [&](SessionOptions& s, AttentionInputs& in) { index.Attach(s, in, 7, 24); };
        attention::HisaReference want = kRules[trained ? 0 : 1].reference;
        const std::string text = absl::StrCat(kRules[trained ? 0 : 1].text, ",score=", score);
        want.limit = limit;
        ExpectListsOf(want, text, a, o);
        want.rescore = 0.3;
        ExpectListsOf(want, text + ",rescore=0.3", a, o);
      }
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
    std::string text;
    const Rule by = ByBounds(rule, text);
    ExpectListsOf(by.reference, by.text, a);
    ExpectListsOf(by.reference, by.text, a, o);
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
  // An infinite element makes a bound infinite or NaN, as its signs fall: not compared.
  index.k[51 * 8 + 1] = NAN;
  for (const Rule& rule : kRules) {
    std::string text;
    const Rule by = ByBounds(rule, text);
    ExpectListsOf(by.reference, by.text, a);
    ExpectListsOf(by.reference, by.text, a, o);
  }
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
    EXPECT_EQ(RunRouter("hisa:k=16,m=16,block=16,bound=max", a, o).lists, dsa.lists);
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
