#include "sluice/policies/experiment/assignment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/policies/experiment/sequential.h"

SLUICE_BEGIN_NAMESPACE
namespace assignment_test {
std::string Unit(int i) { return absl::StrCat("user-", i); }

TEST(ArmAssignment, SharesAreTheWeights) {
  const auto a =
      *ArmAssignment::Create({{"control", 1}, {"b", 2}, {"c", 0.5}, {"off", 0}}, "spring");
  std::vector<int64_t> counts(4);
  for (int i = 0; i < 100000; ++i) ++counts[a.Of(Unit(i))];
  EXPECT_EQ(counts[3], 0);
  EXPECT_GT(SampleRatioP(counts, {1, 2, 0.5, 0}), 0.001);
  EXPECT_LT(SampleRatioP(counts, {1, 2, 0.55, 0}), 0.001);
}

TEST(ArmAssignment, AddingAnArmMovesOnlyItsOwnShare) {
  const auto two = *ArmAssignment::Create({{"a"}, {"b"}}, "s"),
             three = *ArmAssignment::Create({{"a"}, {"b"}, {"c"}}, "s");
  int moved = 0;
  for (int i = 0; i < 30000; ++i) {
    const int before = two.Of(Unit(i)), after = three.Of(Unit(i));
    EXPECT_EQ(two.Of(Unit(i)), before);
    if (after != before) {
      EXPECT_EQ(after, 2);
      ++moved;
    }
  }
  EXPECT_NEAR(moved, 10000, 300);
}

TEST(ArmAssignment, RampingUpKeepsThoseWhoWereIn) {
  const auto small = *ArmAssignment::Create({{"a"}, {"b"}}, "s", 0.05),
             large = *ArmAssignment::Create({{"a"}, {"b"}}, "s", 0.5);
  int in = 0;
  for (int i = 0; i < 20000; ++i) {
    if (small.Of(Unit(i)) == 1) {
      ++in;
      EXPECT_EQ(large.Of(Unit(i)), 1);
    }
  }
  EXPECT_NEAR(in, 500, 100);
}

TEST(ArmAssignment, SaltsAreIndependent) {
  const auto one = *ArmAssignment::Create({{"a"}, {"b"}}, "one"),
             two = *ArmAssignment::Create({{"a"}, {"b"}}, "two");
  std::vector<int64_t> joint(4);
  for (int i = 0; i < 40000; ++i) ++joint[2 * one.Of(Unit(i)) + two.Of(Unit(i))];
  EXPECT_GT(SampleRatioP(joint, {1, 1, 1, 1}), 0.001);
}

TEST(ArmAssignment, BadExperimentsAreNamed) {
  auto error = [](std::vector<ArmAssignment::Arm> arms, double exposure = 1) {
    return std::string(ArmAssignment::Create(std::move(arms), "s", exposure).status().message());
  };
  EXPECT_THAT(error({}), testing::HasSubstr("no arms"));
  EXPECT_THAT(error({{"a", -1}}), testing::HasSubstr("weight -1"));
  EXPECT_THAT(error({{"a"}, {"a"}}), testing::HasSubstr("two arms are called 'a'"));
  EXPECT_THAT(error({{"a", 0}}), testing::HasSubstr("all weights are 0"));
  EXPECT_THAT(error({{"a"}}, 1.5), testing::HasSubstr("exposure 1.5"));
}
}  // namespace assignment_test
SLUICE_END_NAMESPACE
