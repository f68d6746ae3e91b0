#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "sluice/api/assignment.h"
#include "sluice/api/config.h"
#include "sluice/api/dtype.h"
#include "sluice/api/method_keys.h"
#include "sluice/api/plan_check.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using testing::HasSubstr;
struct Config {
  int64_t k = 4;
  double p = 0.5;
  bool on = false;
  std::string heads = "1/2";
  template <class V>
  void VisitFields(V&& v) {
    v("k", k, Range<int64_t>{1, 10}, "how many");
    v("p", p, Range<double>{0, 1}, "how much");
    v("on", on, Range<bool>{false, true}, "whether");
    v("heads", heads, Text{8}, "which");
  }
};
std::string Error(const std::string& spec) {
  Config c;
  auto parsed = ParseSpec(spec);
  if (!parsed.ok()) return std::string(parsed.status().message());
  return std::string(ReadConfig(parsed->options, c).message());
}
TEST(Config, ReadsPrintsAndDescribes) {
  Config c;
  auto spec = ParseSpec("x: k=7 ,p=0.1,on=true,heads=3;4");
  ASSERT_TRUE(spec.ok());
  ASSERT_TRUE(ReadConfig(spec->options, c).ok());
  EXPECT_EQ(c.k, 7);
  EXPECT_EQ(c.p, 0.1);
  EXPECT_TRUE(c.on);
  EXPECT_EQ(c.heads, "3;4");
  EXPECT_EQ(PrintConfig(c), "k=7,p=0.1,on=true,heads=3;4");
  EXPECT_THAT(DescribeConfig<Config>(), HasSubstr("k=4  [1, 10]  how many"));
  EXPECT_THAT(DescribeConfig<Config>(), HasSubstr("heads=1/2  which"));
}
struct Lists {
  std::vector<double> taus;
  template <class V>
  void VisitFields(V&& v) {
    v("taus", taus, Range<double>{0, 1}, "one a head");
  }
};
TEST(Config, ListsOfNumbers) {
  const auto read = [](const std::string& text, Lists& to) {
    auto spec = ParseSpec(text);
    return ReadConfig(spec->options, to);
  };
  Lists c;
  ASSERT_TRUE(read("x:taus=0.5/0/0.125", c).ok());
  EXPECT_EQ(c.taus, (std::vector<double>{0.5, 0, 0.125}));
  EXPECT_EQ(PrintConfig(c), "taus=0.5/0/0.125");
  EXPECT_THAT(std::string(read("x:taus=0.5/2", c).message()), HasSubstr("2 is outside [0, 1]"));
  EXPECT_THAT(std::string(read("x:taus=0.5/a", c).message()), HasSubstr("cannot read 'a'"));
  EXPECT_EQ(c.taus.size(), 3u);  // unchanged
  ASSERT_TRUE(read("x:" + PrintConfig(Lists{}), c).ok());
  EXPECT_TRUE(c.taus.empty());
}
TEST(Config, ErrorsNameWhatWasGivenAndAllowed) {
  EXPECT_THAT(Error("x:q=1"), HasSubstr("unknown key 'q'; known: k, p, on, heads"));
  EXPECT_THAT(Error("x:k=11"), HasSubstr("k=11 is outside [1, 10]"));
  EXPECT_THAT(Error("x:k=1.5"), HasSubstr("cannot read '1.5' as an integer"));
  EXPECT_THAT(Error("x:heads=123456789"), HasSubstr("9 characters, at most 8"));
  EXPECT_THAT(Error("x:p=nan"), HasSubstr("cannot read 'nan'"));
  EXPECT_THAT(Error("x:k"), HasSubstr("is not key=value"));
  EXPECT_THAT(Error(":k=1"), HasSubstr("names no method"));
}
TEST(Assignment, ValidatorFindsEveryFault) {
  std::vector<int64_t> row = {0, 2, 2};
  std::vector<int32_t> unit = {0, 2};
  std::vector<DroppedPair> dropped;
  int64_t num_dropped = 0;
  std::vector<float> score;
  std::vector<float> weight = {1, 0.5f};
  const auto check = [&] {
    Assignment a;
    a.items = 2;
    a.units = 3;
    a.row_ptr = absl::MakeSpan(row);
    a.unit = absl::MakeSpan(unit);
    a.weight = absl::MakeSpan(weight);
    a.score = absl::MakeSpan(score);
    a.dropped = absl::MakeSpan(dropped);
    a.num_dropped = num_dropped;
    return std::string(ValidateAssignment(a).message());
  };
  EXPECT_EQ(check(), "");
  unit = {2, 2};
  EXPECT_THAT(check(), HasSubstr("ascending"));
  unit = {0, 3};
  EXPECT_THAT(check(), HasSubstr("names unit 3, allowed [0, 3)"));
  unit = {0, 2};
  weight[1] = NAN;
  EXPECT_THAT(check(), HasSubstr("not finite"));
  weight[1] = 1;
  score = {1};
  EXPECT_THAT(check(), HasSubstr("give none or all"));
  score = {1, NAN};
  EXPECT_THAT(check(), HasSubstr("score that is not a number"));
  score = {1, 2};
  EXPECT_EQ(check(), "");
  num_dropped = 1;
  EXPECT_THAT(check(), HasSubstr("num_dropped is 1 but the list holds 0"));
  dropped = {{1, 3}};
  EXPECT_THAT(check(), HasSubstr("dropped pair (1, 3) of 2 items and 3 units"));
  dropped = {{1, 2}, {1, 0}};
  num_dropped = 2;
  EXPECT_THAT(check(), HasSubstr("dropped pair 1 is not after"));
  dropped = {{1, 0}, {1, 2}};
  EXPECT_EQ(check(), "");
  row = {0, 3, 2};
  EXPECT_THAT(check(), HasSubstr("range"));
}
TEST(AttentionPlan, ValidatorFindsDuplicatesOrderRangeAndCausality) {
  std::vector<int64_t> begin = {0};
  std::vector<uint32_t> count = {2}, tokens = {3, 5};
  std::vector<PlanEntry> entries = {{0, 2, EntryState::kExact, MaskClass::kFull, 0, 0},
                                    {2, 1, EntryState::kExact, MaskClass::kCausal, 0, 0}};
  AttentionBranch b;
  const auto check = [&](Encoding e) {
    b.encoding = e;
    b.block = e == Encoding::kBlocks ? 4 : 1;
    b.tile = 4;
    b.num_tiles = 1;
    b.rows = {begin, count};
    b.entries = entries;
    b.tokens = tokens;
    AttentionPlan p;
    p.q_begin = 8;
    p.q_count = 4;
    p.kv_len = 12;
    p.heads = p.kv_heads = 1;
    p.branches = absl::MakeConstSpan(&b, 1);
    return std::string(ValidateAttentionPlan(p).message());
  };
  EXPECT_EQ(check(Encoding::kBlocks), "");
  EXPECT_EQ(check(Encoding::kTokens), "");
  tokens = {5, 3};
  EXPECT_THAT(check(Encoding::kTokens), HasSubstr("not ascending and unique"));
  tokens = {5, 5};
  EXPECT_THAT(check(Encoding::kTokens), HasSubstr("not ascending and unique"));
  b.order = EntryOrder::kPriority;
  EXPECT_THAT(check(Encoding::kTokens), HasSubstr("covers key 5 twice"));
  b.order = EntryOrder::kAscending;
  tokens = {5, 12};
  EXPECT_THAT(check(Encoding::kTokens), HasSubstr("names key 12 of 12"));
  entries[1].start = 1;
  EXPECT_THAT(check(Encoding::kBlocks), HasSubstr("covers key 4 twice"));
  entries[1] = {2, 1, EntryState::kExact, MaskClass::kFull, 0, 0};
  EXPECT_THAT(check(Encoding::kBlocks), HasSubstr("shows key 11 to query 8"));
  entries[1] = {3, 1, EntryState::kExact, MaskClass::kCausal, 0, 0};
  EXPECT_THAT(check(Encoding::kBlocks), HasSubstr("reaches block 3 of 3"));
  b.init_from = 0;
  EXPECT_THAT(check(Encoding::kBlocks), HasSubstr("init_from"));
}
TEST(DType, HalfConversionsRoundTrip) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float f = F16ToF32(static_cast<uint16_t>(h)), b = BF16ToF32(static_cast<uint16_t>(h));
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(F16ToF32(F32ToF16(f))));
    } else {
      EXPECT_EQ(F32ToF16(f), h);
    }
    if (!std::isnan(b)) {
      EXPECT_EQ(F32ToBF16(b), h);
    }
  }
}
TEST(MethodKeys, AreAddedWhereTheTextDoesNotGiveThem) {
  const std::string help = "  weight=1  [0, 2]  of all\n  cost_weight=0  [0, 9]  of costs\n";
  EXPECT_EQ(*WithKeys("m", help, {{"a", "1"}, {"b", "2"}}), "m:a=1,b=2");
  EXPECT_EQ(*WithKeys("m:a=3", help, {{"a", "1"}, {"b", "2"}}), "m:a=3,b=2");
  EXPECT_EQ(*WithKeys("m:cost_weight=3", help, {{"weight", "1", true}, {"seed", "1", true}}),
            "m:cost_weight=3,weight=1");
  EXPECT_FALSE(WithKeys("m:a", help, {}).ok());
}
}  // namespace
SLUICE_END_NAMESPACE
