#include "sluice/policies/search/within.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>

SLUICE_BEGIN_NAMESPACE
namespace within_test {
using testing::HasSubstr;

// Four slots of three choices: each is cheaper than the one before, and loses by the slot. Losses
// add up; the cheapest plan within the limits is found by trying all.
struct Made {
  WithinProblem p;
  int64_t asked = 0;
  SearchOptions o = {.evaluations = 40};

  explicit Made(double limit) {
    static constexpr double kWeight[] = {0.1, 1.0, 0.3, 2.0};
    p.cost.assign(4, {10, 4, 1});
    p.limits = {limit, 5};
    p.losses = [this](const Plan& plan) -> absl::StatusOr<std::vector<double>> {
      ++asked;
      double lost = 0;
      for (size_t i = 0; i < plan.size(); ++i) lost += kWeight[i] * plan[i];
      return std::vector<double>{lost, plan[3] == 2 ? 7.0 : -1.0};
    };
  }
  double Cheapest() const {
    double best = HUGE_VAL;
    for (int n = 0; n < 81; ++n) {
      const Plan plan = {n % 3, n / 3 % 3, n / 9 % 3, n / 27};
      const std::vector<double> lost = *p.losses(plan);
      double cost = 0;
      for (size_t i = 0; i < 4; ++i) cost += p.cost[i][plan[i]];
      if (lost[0] <= p.limits[0] && lost[1] <= p.limits[1]) best = std::min(best, cost);
    }
    return best;
  }
};

TEST(SearchWithin, FindsTheCheapestPlanThatKeepsTheLimits) {
  for (double limit : {0.0, 0.15, 0.5, 0.9, 2.0, 4.0, 100.0}) {
    Made made(limit);
    const auto found = SearchWithin(made.p, false, made.o);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->cost, made.Cheapest()) << limit;
    EXPECT_LE(found->losses[0], limit);
    EXPECT_LE(found->losses[1], 5);
  }
}

TEST(SearchWithin, NamesSaferPlansFromCheapToDear) {
  Made made(2.0);
  std::map<Plan, double> use;  // of what was asked, the larger of its shares
  const auto losses = made.p.losses;
  made.p.losses = [&](const Plan& plan) -> absl::StatusOr<std::vector<double>> {
    const auto lost = losses(plan);
    use[plan] = std::max((*lost)[0] / made.p.limits[0], (*lost)[1] / made.p.limits[1]);
    return lost;
  };
  const auto found = SearchWithin(made.p, false, made.o);
  ASSERT_TRUE(found.ok()) << found.status();
  const auto cost = [&](const Plan& plan) {
    double sum = 0;
    for (size_t i = 0; i < plan.size(); ++i) sum += made.p.cost[i][plan[i]];
    return sum;
  };
  ASSERT_GE(found->safer.size(), 3u);
  EXPECT_EQ(found->safer.back(), Plan(made.p.cost.size(), 0));
  double before = found->cost;
  for (size_t i = 0; i + 1 < found->safer.size(); ++i) {
    const double mine = cost(found->safer[i]);
    EXPECT_GE(mine, 1.05 * before);
    EXPECT_LE(use.at(found->safer[i]), 1);
    // The cheapest that is so much dearer.
    for (const auto& [other, share] : use) {
      const bool passed_over = share <= 1 && cost(other) >= 1.05 * before && cost(other) < mine;
      EXPECT_FALSE(passed_over);
    }
    before = mine;
  }
}

TEST(UntilOneHolds, StepsBackToSaferPlans) {
  const WithinResult found = {.plan = {2, 2}, .safer = {{2, 1}, {1, 1}, {0, 0}}};
  std::vector<Plan> asked;
  const auto from = [&](const Plan& good, int64_t most) {
    asked.clear();
    return *UntilOneHolds(found, most, [&](const Plan& plan) -> absl::StatusOr<bool> {
      asked.push_back(plan);
      return plan == good;
    });
  };
  StepBack steps = from({2, 2}, 3);
  EXPECT_TRUE(steps.holds);
  EXPECT_EQ(steps.asked, 1);
  steps = from({1, 1}, 3);
  EXPECT_TRUE(steps.holds);
  EXPECT_EQ(steps.asked, 3);
  EXPECT_THAT(asked, testing::ElementsAre(Plan{2, 2}, Plan{2, 1}, Plan{1, 1}));
  steps = from({0, 0}, 3);
  EXPECT_FALSE(steps.holds);
  EXPECT_EQ(steps.asked, 3);
  steps = from({9, 9}, 100);  // none does
  EXPECT_FALSE(steps.holds);
  EXPECT_EQ(steps.asked, 4);
  const auto failing = [](const Plan&) -> absl::StatusOr<bool> { return absl::DataLossError("x"); };
  EXPECT_EQ(UntilOneHolds(found, 3, failing).status().message(), "x");
}

TEST(SearchWithin, EvaluatesNothingTwiceAndNoMoreThanAllowed) {
  Made made(1.0);
  const auto found = SearchWithin(made.p, false, made.o);
  EXPECT_EQ(found->evaluations, made.asked);
  Made few(1.0);
  few.o.evaluations = 5;
  int64_t told = 0;
  few.o.progress = [&](int64_t done) { EXPECT_EQ(done, ++told); };
  for (bool random : {false, true}) {
    few.asked = told = 0;
    const auto r = SearchWithin(few.p, random, few.o);
    EXPECT_EQ(r->evaluations, 5);
    EXPECT_EQ(few.asked, 5);
    EXPECT_EQ(told, 5);
  }
}

TEST(SearchWithin, GivesOneSlotBackWhereAChoiceMissesNarrowly) {
  // Twelve slots of one cheap choice that loses 1.02 in all of them: from the reference down there
  // are eleven steps to the best plan, from the cheapest plan down one step back.
  WithinProblem p;
  p.cost.assign(12, {10, 1});
  p.limits = {1};
  p.losses = [](const Plan& plan) -> absl::StatusOr<std::vector<double>> {
    double lost = 0;
    for (int choice : plan) lost += 0.085 * choice;
    return std::vector<double>{lost};
  };
  const auto found = SearchWithin(p, false, {.evaluations = 4});
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->cost, 21);

  // Slots that lose more than their share are given back by what is measured; here one loses all.
  p.losses = [](const Plan& plan) -> absl::StatusOr<std::vector<double>> {
    return std::vector<double>{plan[11] == 1 ? 1.02 : 0.0};
  };
  const auto measured = SearchWithin(p, false, {.evaluations = 30});
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_EQ(measured->cost, 21);
}

TEST(SearchWithin, BeatsRandomSearchWithAsManyEvaluations) {
  // Twelve slots, of which two must stay: luck does not find that in 20 plans.
  WithinProblem p;
  p.cost.assign(12, {10, 1});
  p.limits = {1};
  p.losses = [](const Plan& plan) -> absl::StatusOr<std::vector<double>> {
    return std::vector<double>{3.0 * (plan[2] + plan[7])};
  };
  const SearchOptions o = {.evaluations = 20};
  const auto found = SearchWithin(p, false, o);
  const auto control = SearchWithin(p, true, o);
  EXPECT_EQ(found->cost, 30);
  EXPECT_GT(control->cost, found->cost);
}

TEST(SearchWithin, TheReferenceIsThereWhenNothingElseKeepsTheLimits) {
  WithinProblem p;
  p.cost.assign(3, {10, 1});
  p.limits = {1};
  for (double loss : {2.0, std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
    p.losses = [=](const Plan&) -> absl::StatusOr<std::vector<double>> {
      return std::vector<double>{loss};
    };
    for (bool random : {false, true}) {
      const auto found = SearchWithin(p, random, {.evaluations = 9});
      EXPECT_EQ(found->plan, Plan({0, 0, 0}));
      EXPECT_EQ(found->cost, 30);
    }
  }
}

TEST(SearchWithin, RefusesWhatIsNoProblem) {
  const auto said = [](const std::function<void(Made&)>& spoil) {
    Made made(1.0);
    spoil(made);
    return std::string(SearchWithin(made.p, false, made.o).status().message());
  };
  EXPECT_THAT(said([](Made& m) { m.p.limits.clear(); }), HasSubstr("0 limits"));
  EXPECT_THAT(said([](Made& m) { m.p.cost.clear(); }), HasSubstr("0 slots"));
  EXPECT_THAT(said([](Made& m) { m.o.evaluations = 0; }), HasSubstr("0 evaluations"));
  EXPECT_THAT(said([](Made& m) { m.p.cost[1].pop_back(); }), HasSubstr("different choices"));
  EXPECT_THAT(said([](Made& m) { m.p.cost[1][1] = NAN; }), HasSubstr("costs nan"));
  EXPECT_THAT(said([](Made& m) { m.p.limits[0] = -1; }), HasSubstr("a limit of -1"));
  Made failing(1.0);
  failing.p.losses = [](const Plan&) { return absl::UnavailableError("gone"); };
  EXPECT_EQ(SearchWithin(failing.p, false, failing.o).status().message(), "gone");
}
}  // namespace within_test
SLUICE_END_NAMESPACE
