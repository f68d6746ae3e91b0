#include "sluice/routers/attention/quest/quest.h"

#include <gtest/gtest.h>

#include "sluice/routers/attention/quest/quest_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace quest_test {
struct Rule {
  const char* text;
  attention::QuestReference reference;
};
const Rule kRules[] = {
    {"k=3", {.budget = {.k = 3, .sink = 0, .local = 1, .count_forced = false}}},
    {"k=4,group=max",
     {.budget = {.k = 4, .sink = 0, .local = 1, .count_forced = false}, .sum_group = false}},
    {"page=8,k=7,sink=1,local=2,force_counts_in_budget=true",
     {.page = 8, .budget = {.k = 7, .sink = 1, .local = 2}}},
    {"page=128,k=1",
     {.page = 128, .budget = {.k = 1, .sink = 0, .local = 1, .count_forced = false}}},
    {"page=32,k=0,p=0.6,group=max",
     {.page = 32,
      .budget = {.p = 0.6, .sink = 0, .local = 1, .count_forced = false},
      .sum_group = false}},
    {"page=16,k=0,p=0.7,force_counts_in_budget=true",
     {.budget = {.p = 0.7, .sink = 0, .local = 1}}},
    {"k=2147483648",
     {.budget = {.k = int64_t{1} << 31, .sink = 0, .local = 1, .count_forced = false}}},
    {"k=0,p=1", {.budget = {.p = 1, .sink = 0, .local = 1, .count_forced = false}}},
};
std::string Policy(const Rule& rule) { return absl::StrCat("quest:", rule.text); }

TEST(Quest, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule), a, c.Options());
  }
}

// Keys whose bounds are tight, far apart, or of one sign, after as many ordinary ones.
AttentionData Adversarial(uint64_t seed) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 40, 4, 2, 24, 8, seed);
  const int64_t width = a.kv_heads * a.d;
  for (int64_t s = 0; s < a.kv_len; ++s) {
    float* key = &a.k[s * width];
    for (int64_t x = 0; x < width; ++x) {
      if (s / 16 % 6 == 0) key[x] = a.k[x];  // all alike: every bound is a logit
      if (s / 16 % 6 == 1) key[x] *= s % 2 == 0 ? 1e4f : 1e-4f;
      if (s / 16 % 6 == 2) key[x] = -std::fabs(key[x]);
      if (s / 16 % 6 == 3) key[x] = x % 2 == 0 ? 0.0f : -0.0f;
      if (s / 16 % 6 == 4) key[x] = s % 2 == 0 ? key[x] : -key[x - (x > 0)];
    }
  }
  for (int64_t i = 0; i < a.q_count; i += 3) {
    for (int64_t x = 0; x < a.heads * a.d; ++x)
      a.q[i * a.heads * a.d + x] *= x % 5 == 0 ? 0 : -1e3f;
  }
  return a;
}

// The state of a router over the first keys of some data.
class Bounds {
 public:
  explicit Bounds(const AttentionData& a, int64_t page)
      : plan_({.max_queries = 1, .max_kv = a.kv_len}),
        page_(page),
        layout_(attention::BlockBounds::AddTo(plan_, a.kv_heads, page, a.d)),
        bytes_(plan_.state_bytes) {}

  void Append(const AttentionData& a, int64_t keys) {
    KvView k = a.K();
    k.rows = keys;
    InlineExecutor executor;
    Get().Append(k, executor);
    keys_ = keys;
  }
  void Truncate(int64_t keys) { keys_ = keys; }

  // Every page's bound is at least the logit of each of its keys, but for rounding, and is that of
  // the reference.
  void Check(const AttentionData& a) {
    const attention::BlockBounds bounds = Get();
    std::vector<float> split(2 * a.d);
    for (int64_t i = 0; i < a.q_count; ++i) {
      for (int64_t h = 0; h < a.heads; ++h) {
        const int64_t kv = h / (a.heads / a.kv_heads);
        std::fill(split.begin(), split.end(), 0.0f);
        attention::AddSplitBySign(a.Q().at(i, h), a.d, 1, split.data());
        const auto q = attention::reference::Query(a.Q(), i, h, 1);
        for (int64_t begin = 0; begin < keys_; begin += page_) {
          const int64_t end = std::min(keys_, begin + page_);
          const double bound =
              kernels::Dot(split.data(), bounds.At(kv, begin / page_), DType::kF32, 2 * a.d);
          double size = 0;
          for (int64_t s = begin; s < end; ++s) {
            double logit = 0;
            double sum = 0;
            for (int64_t x = 0; x < a.d; ++x) {
              const double product = q[x] * a.K().Get(s, kv, x);
              logit += product;
              sum += std::fabs(product);
            }
            size = std::max(size, sum);
            ASSERT_GE(bound, logit - 1e-5 * sum) << "key " << s << " of " << keys_;
          }
          const double want = attention::QuestReference::Bound(q, a.K(), begin, end, kv);
          ASSERT_NEAR(bound, want, 1e-5 * (std::fabs(want) + size)) << begin << " of " << keys_;
        }
      }
    }
  }

 private:
  attention::BlockBounds Get() {
    RouterState state;
    state.layer = bytes_.data();
    state.keys = keys_;
    return {state, layout_};
  }

  attention::RouterPlan plan_;
  int64_t page_;
  attention::BlockBounds::Layout layout_;
  std::vector<std::byte> bytes_;
  int64_t keys_ = 0;
};

TEST(Quest, ABoundIsNeverBelowALogitOfItsPage) {
  for (DType type : {DType::kF32, DType::kBF16}) {
    for (int64_t page : {1, 16, 24}) {
      AttentionData a[] = {MakeAttentionData(DataKind::kGaussian, 200, 40, 4, 2, 24, 8, 1),
                           Adversarial(2)};
      for (AttentionData& data : a) {
        if (type != DType::kF32) data.Convert(type);
        Bounds bounds(data, page);
        for (int64_t keys : {1, 7, 15, 16, 17, 90, 91, 200}) {  // pages open, close and grow
          bounds.Append(data, keys);
          bounds.Check(data);
        }
      }
    }
  }
}
// Wide bounds of keys that were taken back do not stay.
TEST(Quest, BoundsAfterTruncateAreThoseOfTheKeysThatRemain) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 9, 4, 2, 24, 8, 3);
  AttentionData other = Adversarial(4);
  Bounds bounds(a, 16);
  for (int64_t keep : {96, 101, 1}) {
    std::copy(a.k.begin(), a.k.begin() + keep * a.kv_heads * a.d, other.k.begin());
    bounds.Append(other, 200);
    bounds.Truncate(keep);
    bounds.Append(a, keep + 1);
    bounds.Check(a);
    bounds.Append(a, 150);
    bounds.Check(a);
  }
}

// A page of one key is bounded by its logit: the budget then goes to the truly best keys.
TEST(Quest, PagesOfOneKeyAreTheBestKeys) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 150, 1, 2, 2, 32, 16, 5);
  const RoutedRun run = RunRouter("quest:page=1,k=9", a);
  ASSERT_TRUE(run.status.ok()) << run.status;
  const AttentionInputs in = a.Inputs();
  for (int64_t h = 0; h < 2; ++h) {
    std::vector<std::pair<double, uint32_t>> logits;
    for (uint32_t s = 0; s + 1 < 150; ++s) {
      double logit = 0;
      for (int64_t x = 0; x < a.d; ++x) logit += double{in.q.at(0, h)[x]} * in.k.Get(s, h, x);
      logits.emplace_back(-logit, s);
    }
    std::sort(logits.begin(), logits.end());
    std::vector<uint32_t> want = {149};  // the last page comes on top
    for (int i = 0; i < 9; ++i) want.push_back(logits[i].second);
    std::sort(want.begin(), want.end());
    EXPECT_EQ(run.lists[h], want);
  }
}
TEST(Quest, ADecodeStepReadsItsBudgetAndTheLastPage) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 16 * 20 + 5, 1, 4, 2, 32, 24, 6);
  const RoutedRun run = RunRouter("quest:k=6", a);
  ASSERT_TRUE(run.status.ok()) << run.status;
  for (const auto& list : run.lists) {
    EXPECT_EQ(std::ssize(list), 6 * 16 + 5);
    EXPECT_EQ(list.back(), a.kv_len - 1);
  }
}
// Pages longer than a tile, and tiles that end inside a page: what comes after the tile has no say.
TEST(Quest, ChunksOfTilesGiveTheListsOfOneCall) {
  for (int64_t q : {448, 410}) {
    const AttentionData a = MakeAttentionData(DataKind::kNeedles, 448, q, 4, 2, 32, 24, 7);
    for (const char* rule :
         {"k=5", "page=24,k=3,group=max", "page=128,k=0,p=0.6,force_counts_in_budget=true",
          "page=256,k=0,p=0.5,group=max,force_counts_in_budget=true"}) {
      HarnessOptions o;
      o.chunk = 64;
      const std::string policy = absl::StrCat("quest:", rule);
      EXPECT_EQ(RunRouter(policy, a, o).lists, RunRouter(policy, a).lists) << policy << " " << q;
    }
  }
}
TEST(Quest, TiesGoToTheLowestPage) {
  for (int64_t q : {200, 1}) {
    const AttentionData a =
        WithTies(MakeAttentionData(DataKind::kGaussian, 333, q, 4, 2, 16, 24, 8), 16);
    for (int64_t k : {1, 3, 5, 8}) {
      attention::QuestReference want;
      want.budget.k = k;
      ExpectListsOf(want, absl::StrCat("quest:k=", k), a);
    }
  }
}
// A query of NaN leaves the choice to the others; a page with a key of NaN is never chosen.
TEST(Quest, NanScoresAreNotSelected) {
  const AttentionData clean = MakeAttentionData(DataKind::kGaussian, 300, 130, 4, 2, 32, 24, 9);
  for (const AttentionData& a : WithNans(clean, 5 * 4 * 32, 150 * 2 * 32 + 7)) {
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Policy(rule), a);
  }
}
TEST(Quest, NeedsABudget) {
  EXPECT_FALSE(BuiltinRouters().attention.Create("quest:k=0").ok());
  EXPECT_FALSE(BuiltinRouters().attention.Create("quest:group=mean").ok());
}
}  // namespace quest_test
SLUICE_END_NAMESPACE
