#include "sluice/routers/expert/expert_choice/expert_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_join.h"
#include "sluice/routers/expert/expert_choice/calibrate.h"
#include "sluice/routers/expert/expert_choice/expert_choice_reference.h"
#include "sluice/tests/support/expert_run.h"

SLUICE_BEGIN_NAMESPACE
namespace expert_choice_test {
constexpr int64_t kItems = 120;
constexpr int64_t kUnits = 8;
constexpr const char* kByCapacity = "by=capacity,non_causal_ok=true";

ExpertRun Route(const std::string& options, const std::vector<float>& z, int64_t units = kUnits,
                int threads = 1) {
  RouteInputs in;
  in.items = std::ssize(z) / units;
  in.scores = RowsOf(z, units);
  return RunExperts("expert/expert_choice:" + options, in, units, nullptr, threads);
}
reference::Table TableOf(const std::vector<float>& z) {
  reference::Table t;
  for (size_t i = 0; i < z.size(); i += kUnits)
    t.push_back({z.begin() + i, z.begin() + i + kUnits});
  return t;
}
void ExpectWeights(const ExpertRun& r, const reference::Table& want) {
  ASSERT_TRUE(r.status.ok()) << r.status;
  for (int64_t i = 0; i < r.a().items; ++i) {
    std::vector<double> got(kUnits);
    for (int64_t e = r.a().row_ptr[i]; e < r.a().row_ptr[i + 1]; ++e)
      got[r.a().unit[e]] = r.a().weight[e];
    for (int64_t u = 0; u < kUnits; ++u) EXPECT_NEAR(got[u], want[i][u], 1e-6) << i << " " << u;
  }
}
std::vector<int64_t> Loads(const ExpertRun& r) {
  std::vector<int64_t> load(r.a().units);
  for (int64_t e = 0; e < r.a().entries(); ++e) ++load[r.a().unit[e]];
  return load;
}

TEST(ExpertChoice, AgreesWithTheReference) {
  const std::vector<float> z = NormalRows(kItems, kUnits, 1);
  ExpectWeights(Route(kByCapacity, z), reference::ChosenByCapacity(TableOf(z), 15));
  ExpectWeights(Route(absl::StrCat(kByCapacity, ",capacity=2"), z),
                reference::ChosenByCapacity(TableOf(z), 30));
  ExpectWeights(Route("", z), reference::ChosenByThreshold(
                                  TableOf(z), std::vector<double>(kUnits, 1.0 / kUnits)));
  const std::vector<double> thresholds = {0.1, 0.2, 0.3, 0.05, 0, 1, 0.15, 0.12};
  ExpectWeights(Route("thresholds=" + absl::StrJoin(thresholds, "/"), z),
                reference::ChosenByThreshold(TableOf(z), thresholds));
}
TEST(ExpertChoice, EveryExpertTakesExactlyItsCapacity) {
  for (const auto& [options, capacity] :
       std::vector<std::pair<std::string, int64_t>>{{"capacity=1", 15},
                                                    {"capacity=0.42", 6},  // round(6.3)
                                                    {"capacity=0.5", 8},   // round(7.5)
                                                    {"capacity=0", 4},     // the least
                                                    {"capacity=1000", kItems}}) {
    const std::vector<float> z = NormalRows(kItems, kUnits, 2);
    const ExpertRun r = Route(absl::StrCat(kByCapacity, ",", options), z);
    EXPECT_EQ(r.a().entries(), kUnits * capacity) << options;
    EXPECT_THAT(Loads(r), testing::Each(capacity)) << options;
  }
}
// Weights are the probabilities themselves: those of a token with all experts sum to 1, of others
// to less.
TEST(ExpertChoice, WeightsAreNotRenormalised) {
  const std::vector<float> z = NormalRows(kItems, kUnits, 3);
  const ExpertRun all = Route(absl::StrCat(kByCapacity, ",capacity=1000"), z);
  const ExpertRun some = Route(kByCapacity, z);
  for (int64_t i = 0; i < kItems; ++i) {
    const auto sum = [&](const ExpertRun& r) {
      double s = 0;
      for (float w : r.Weights(i)) s += w;
      return s;
    };
    EXPECT_NEAR(sum(all), 1, 1e-5);
    EXPECT_LT(sum(some), 1);
  }
}
TEST(ExpertChoice, ByCapacityTheFutureDecides) {
  std::vector<float> z = NormalRows(kItems, kUnits, 4);
  const ExpertRun before = Route(kByCapacity, z);
  const ExpertRun thresholds = Route("", z);
  constexpr int64_t kLater = kItems - 5;
  for (int64_t i = kLater; i < kItems; ++i) z[i * kUnits + 3] = 50;  // all want expert 3
  const ExpertRun after = Route(kByCapacity, z);
  int64_t changed = 0;
  for (int64_t i = 0; i < kLater; ++i) changed += before.Units(i) != after.Units(i);
  EXPECT_GT(changed, 0);
  const ExpertRun alone = Route("", z);
  for (int64_t i = 0; i < kLater; ++i) EXPECT_EQ(alone.Units(i), thresholds.Units(i)) << i;
}
TEST(ExpertChoice, CalibratedThresholdsChooseWhatTheCapacityDoes) {
  const std::vector<float> z = NormalRows(2000, kUnits, 5);
  const auto thresholds = expert::CalibrateThresholds(RowsOf(z, kUnits), 2);
  ASSERT_TRUE(thresholds.ok()) << thresholds.status();
  expert::ExpertChoice::Config calibrated;
  calibrated.thresholds = *thresholds;
  const std::string text = PrintConfig(calibrated);
  const ExpertRun by_capacity = Route(absl::StrCat(kByCapacity, ",capacity=2"), z);
  const ExpertRun by_threshold = Route(text, z);
  ASSERT_TRUE(by_threshold.status.ok()) << by_threshold.status;
  EXPECT_EQ(by_threshold.AllUnits(), by_capacity.AllUnits());
  EXPECT_EQ(by_threshold.AllWeights(), by_capacity.AllWeights());

  // On other tokens of the same kind: about the same load.
  const std::vector<float> other = NormalRows(2000, kUnits, 6);
  for (int64_t load : Loads(Route(text, other))) EXPECT_NEAR(load, 500, 75);
}
TEST(ExpertChoice, TiesGoToTheEarlierTokenAndNaNIsCounted) {
  std::vector<float> z(10 * kUnits, 0.5f);
  const ExpertRun tie = Route(kByCapacity, z);
  for (int64_t i = 0; i < 10; ++i) EXPECT_EQ(tie.Units(i).size(), i < 4 ? size_t{kUnits} : 0u);
  z[2] = NAN;  // token 0, expert 2: expert 2 takes tokens 1 to 4
  const ExpertRun odd = Route(kByCapacity, z);
  EXPECT_EQ(odd.a().nan_scores, 1);
  EXPECT_THAT(odd.Units(0), testing::Not(testing::Contains(2)));
  EXPECT_THAT(odd.Units(4), testing::Contains(2));
  const ExpertRun alone = Route("thresholds=0", z);
  EXPECT_EQ(alone.a().nan_scores, 1);
  EXPECT_EQ(alone.Units(0).size(), size_t{kUnits - 1});
}
TEST(ExpertChoice, TheSameForAnyNumberOfThreads) {
  const std::vector<float> z = NormalRows(3000, kUnits, 7);
  for (const char* options : {"", kByCapacity}) {
    const ExpertRun one = Route(options, z);
    for (int threads : {2, 8}) {
      const ExpertRun many = Route(options, z, kUnits, threads);
      EXPECT_EQ(many.AllUnits(), one.AllUnits()) << options;
      EXPECT_EQ(many.AllWeights(), one.AllWeights()) << options;
    }
  }
}
TEST(ExpertChoice, NothingToChooseFrom) {
  EXPECT_EQ(Route(kByCapacity, {}).a().entries(), 0);
  EXPECT_EQ(Route("", {}).a().entries(), 0);
}
TEST(ExpertChoice, ErrorsSayWhatIsWrong) {
  using testing::HasSubstr;
  const std::vector<float> z = NormalRows(10, kUnits, 8);
  const auto error = [&](const std::string& options) {
    return std::string(Route(options, z).status.message());
  };
  EXPECT_THAT(error("by=capacity"), HasSubstr("say non_causal_ok=true"));
  EXPECT_THAT(error(absl::StrCat(kByCapacity, ",thresholds=0.5")), HasSubstr("would be ignored"));
  EXPECT_THAT(error("capacity=2"), HasSubstr("capacity=2, min_capacity=4 with by=threshold"));
  EXPECT_THAT(error("thresholds=0.1/0.2"), HasSubstr("2 thresholds for 8 experts"));
  EXPECT_THAT(error("thresholds=1.5"), HasSubstr("outside [0, 1]"));
  auto router = BuiltinRouters().routers.Create(absl::StrCat("expert_choice:", kByCapacity));
  EXPECT_THAT((*router)->MakePlan({.items = 4}).status().message(), HasSubstr("0 units"));
  EXPECT_THAT((*router)->MakePlan({.items = int64_t{1} << 40, .units = 64}).status().message(),
              HasSubstr("allowed 2^31 - 1 entries"));
  const auto message = [](const auto& made) { return std::string(made.status().message()); };
  EXPECT_THAT(message(expert::CalibrateThresholds(RowsOf(z, kUnits), 0.1)),
              HasSubstr("leaves an expert no token"));
  EXPECT_THAT(message(expert::CalibrateThresholds({}, 1)), HasSubstr("0 tokens and 0 experts"));
  const std::vector<float> odd(4, NAN);
  EXPECT_THAT(message(expert::CalibrateThresholds(RowsOf(odd, 2), 1)),
              HasSubstr("expert 0 has no logit"));
}
}  // namespace expert_choice_test
SLUICE_END_NAMESPACE
