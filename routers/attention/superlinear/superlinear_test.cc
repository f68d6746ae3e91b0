#include "sluice/routers/attention/superlinear/superlinear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/superlinear/superlinear_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace superlinear_test {
using attention::SuperlinearReference;
struct Rule {
  const char* text;
  SuperlinearReference reference;
};
const Rule kRules[] = {
    {"sw_index=5,k=2,p=0.5,e=0.5,back=1,ahead=0",
     {.sw_index = 5, .k = 2, .p = 0.5, .e = 0.5, .back = 1, .ahead = 0}},
    {"sw_index=2,k=3,p=0.5,e=0.5,back=2,ahead=0,tile=7",
     {.sw_index = 2, .k = 3, .p = 0.5, .e = 0.5, .back = 2, .ahead = 0}},
    {"sw_index=0,k=1,p=0.7,e=0.3,back=1.5,ahead=2,tile=1",
     {.sw_index = 0, .k = 1, .p = 0.7, .e = 0.3, .back = 1.5, .ahead = 2}},
    {"sw_index=16,k=7,back=0,ahead=0.5", {.sw_index = 16, .k = 7, .back = 0, .ahead = 0.5}},
    {"", {}},
};
std::string Own(const Rule& rule) {
  return absl::StrCat("superlinear:weights=synthetic,search=own", *rule.text == 0 ? "" : ",",
                      rule.text);
}

TEST(Superlinear, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Own(rule), a, c.Options());
  }
}
TEST(Superlinear, TiesGoToTheNearestAnchor) {
  const AttentionData a =
      WithTies(MakeAttentionData(DataKind::kGaussian, 333, 60, 4, 2, 16, 24, 2), 16);
  for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Own(rule), a);
}
TEST(Superlinear, NanScoresAreNotChosen) {
  const AttentionData clean = MakeAttentionData(DataKind::kNeedles, 300, 60, 4, 2, 32, 24, 3);
  for (const AttentionData& a : WithNans(clean, (20 * 4 + 1) * 32, 200 * 64 + 3)) {
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Own(rule), a);
  }
}
TEST(Superlinear, OutputsAreTheReferences) {
  for (auto [kv, q, heads, kv_heads] :
       {std::array<int64_t, 4>{230, 230, 4, 2}, {203, 1, 4, 1}, {97, 30, 3, 3}, {1, 1, 2, 1}}) {
    const AttentionData a =
        MakeAttentionData(DataKind::kNeedles, kv, q, heads, kv_heads, 16, 24, 4);
    for (const Rule& rule : kRules) {
      for (bool learned : {true, false}) {
        const std::string policy =
            absl::StrCat("superlinear:weights=synthetic", learned ? "" : ",search=own",
                         *rule.text == 0 ? "" : ",", rule.text);
        SuperlinearReference reference = rule.reference;
        if (learned) {
          Spec spec = *ParseSpec(policy);
          std::erase_if(spec.options, [](const KeyValue& o) { return o.first == "weights"; });
          const AttentionShape shape = {.max_queries = q,
                                        .max_kv = kv,
                                        .heads = static_cast<int>(heads),
                                        .kv_heads = static_cast<int>(kv_heads),
                                        .head_dim = 16,
                                        .value_dim = 24,
                                        .layers = 4,
                                        .width = a.width};
          const auto* factory = *BuiltinRouters().attention.Find("superlinear");
          const SyntheticWeights weights(*factory->Weights(spec.options, shape), 1);
          reference.query =
              *weights.ReadF32("superlinear.2.query",
                               {static_cast<uint64_t>(a.width), static_cast<uint64_t>(heads * 16)});
        }
        HarnessOptions o;
        o.layer = 2;
        const RoutedRun r = RunRouter(policy, a, o);
        ASSERT_TRUE(r.status.ok()) << r.status;
        for (int64_t i = 0; i < q; ++i) {
          for (int64_t h = 0; h < heads; ++h) {
            const SuperlinearReference::Row want = reference.Query(a.Inputs(), i, h);
            ASSERT_EQ(r.lists[i * heads + h], want.keys) << policy << " " << i << " " << h;
            for (int64_t x = 0; x < 24; ++x)
              ASSERT_NEAR(r.o[(i * heads + h) * 24 + x], want.o[x], 1e-4) << policy << " " << i;
          }
        }
      }
    }
  }
}
TEST(Superlinear, GatesSumToOne) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 260, 260, 4, 2, 32, 24, 5);
  for (const Rule& rule : kRules) {
    HarnessOptions o;
    o.see = [&](const AttentionPlan& plan) {
      const int64_t each = plan.q_count * plan.heads;
      for (int64_t at = 0; at < each; ++at) {
        double sum = 0;
        for (size_t b = 0; b < plan.branches.size(); ++b)
          sum += plan.branch_weight[static_cast<int64_t>(b) * each + at];
        EXPECT_NEAR(sum, 1, 1e-6);
        // The window alone, or spans alone: it is part of each of them.
        EXPECT_TRUE(plan.branch_weight[at] == 0 || plan.branch_weight[at] == 1);
      }
    };
    ASSERT_TRUE(RunRouter(Own(rule), a, o).status.ok());
  }
}
TEST(Superlinear, AWindowOfAllKeysAndASpanOfTheRestAreDense) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 120, 4, 2, 32, 24, 6);
  const RoutedRun want = RunRouter("dense", a);
  // Windows of 323 keys; and of 8, with one span of all before them, wherever its anchor lies.
  for (const char* rule : {"sw_index=17,p=0.5", "sw_index=2,p=0.5,k=1,back=1000,ahead=1000"}) {
    const RoutedRun r =
        RunRouter(absl::StrCat("superlinear:weights=synthetic,search=own,", rule), a);
    ASSERT_TRUE(r.status.ok()) << r.status;
    EXPECT_EQ(r.lists, want.lists) << rule;
    for (size_t i = 0; i < want.o.size(); ++i) ASSERT_NEAR(r.o[i], want.o[i], 2e-5f) << rule;
  }
}
// The share of the keys of query 20,000 that some anchor's span or the window reaches.
double Coverage(double p, double e, double back, double ahead, int64_t sw_index) {
  const attention::Superlinear::Config c = {
      .sw_index = sw_index, .p = p, .e = e, .back = back, .ahead = ahead};
  const int64_t t = 20000;
  std::vector<bool> reached(t + 1);
  std::fill(reached.begin() + (t + 1 - c.Window()), reached.end(), true);
  for (int64_t i = 0; c.Anchor(t, i) >= 0; ++i) {
    const auto span = c.SpanOf(t, c.Anchor(t, i));
    EXPECT_LE(span.end, t + 1 - c.Window());
    std::fill(reached.begin() + span.begin, reached.begin() + span.end, true);
  }
  return static_cast<double>(std::count(reached.begin(), reached.end(), true)) /
         static_cast<double>(t + 1);
}
TEST(Superlinear, CoverageNeedsExponentsThatSumToOne) {
  EXPECT_EQ(attention::Superlinear::Config().Window(), 2032);
  EXPECT_EQ(Coverage(0.5, 0.5, 2, 0, 1), 1);
  EXPECT_EQ(Coverage(0.5, 0.5, 2, 0, 65), 1);
  EXPECT_EQ(Coverage(0.55, 0.55, 3, 1, 1), 1);
  EXPECT_EQ(Coverage(0.55, 0.55, 3, 1, 65), 1);
  EXPECT_NEAR(Coverage(0.4, 0.4, 2, 0, 1), 0.244, 0.001);
  EXPECT_NEAR(Coverage(0.4, 0.5, 2, 0, 1), 0.553, 0.001);
}
TEST(Superlinear, SettingsThatMakeNoSenseAreRefused) {
  const auto why = [](const std::string& policy) {
    return std::string(BuiltinRouters().attention.Create(policy).status().message());
  };
  EXPECT_THAT(why("superlinear"), testing::HasSubstr("weights=FILE, or search=own"));
  EXPECT_THAT(why("superlinear:search=own,k=8"), testing::HasSubstr("k"));
  EXPECT_THAT(why("superlinear:search=own,p=1.5"), testing::HasSubstr("p"));
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 64, 4, 2, 32, 32, 6);
  HarnessOptions o;
  o.adjust = [](SessionOptions&, AttentionInputs& in) { in.hidden = {}; };
  EXPECT_EQ(RunRouter("superlinear:weights=synthetic", a, o).status.code(),
            absl::StatusCode::kFailedPrecondition);
}
}  // namespace superlinear_test
SLUICE_END_NAMESPACE
