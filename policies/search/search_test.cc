#include "sluice/policies/search/search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/policies/search/control.h"

SLUICE_BEGIN_NAMESPACE
namespace search_test {
// Layers that matter differently; `pair`: the first two help only together, which additive methods
// cannot see.
SearchProblem Layers(double budget, double pair = 0) {
  SearchProblem p;
  for (int i = 0; i < 6; ++i) p.cost.push_back({0.1, 0.4, 1.0});
  p.budget = budget;
  p.quality = [pair](const Plan& plan) -> absl::StatusOr<double> {
    const double matters[] = {1, 1, 3, 0.2, 0.1, 2}, share[] = {0, 0.7, 1};
    double q = 0;
    for (size_t i = 0; i < plan.size(); ++i) q += matters[i] * share[plan[i]];
    return q + (plan[0] == 2 && plan[1] == 2 ? pair : 0);
  };
  return p;
}
double Exhaustive(const SearchProblem& p) {
  double best = -INFINITY;
  for (int code = 0; code < 729; ++code) {
    Plan plan;
    double cost = 0;
    for (int i = 0, c = code; i < 6; ++i, c /= 3) {
      plan.push_back(c % 3);
      cost += p.cost[i][c % 3];
    }
    if (cost <= p.budget * (1 + 1e-9)) best = std::max(best, *p.quality(plan));
  }
  return best;
}

TEST(SearchPlan, DynamicProgrammingIsExactWhereGainsAdd) {
  for (double budget : {0.6, 1.0, 1.7, 2.5, 4.0, 6.0}) {
    const SearchProblem p = Layers(budget);
    const auto r = SearchPlan(p, SearchMethod::kDynamic, {});
    ASSERT_TRUE(r.ok()) << r.status();
    EXPECT_NEAR(r->quality, Exhaustive(p), 1e-12) << budget;
    EXPECT_LE(r->cost, budget * (1 + 1e-9));
    // 1 + 6 * 2 alone and the plan, twice, and three uniform plans at most.
    EXPECT_LE(r->evaluations, 3 + 2 * 14);
  }
}

TEST(SearchPlan, EveryMethodKeepsTheBudgetAndDoesNotLoseToRandomSearch) {
  const SearchProblem p = Layers(2.2);
  SearchOptions o;
  o.evaluations = 40;
  for (int m = 1; m < 6; ++m) {
    const auto method = static_cast<SearchMethod>(m);
    const auto t = TrySearch(p, method, o, 20);
    ASSERT_TRUE(t.ok()) << t.status();
    EXPECT_NE(t->gains.verdict, SearchVerdict::kLoses)
        << kSearchMethods[m] << " " << VerdictText(t->gains);
    for (const SearchResult& r : t->found) {
      EXPECT_LE(r.cost, 2.2 * (1 + 1e-9));
      EXPECT_LE(r.evaluations, 40);
      EXPECT_EQ(*p.quality(r.plan), r.quality);
    }
    EXPECT_EQ(SearchPlan(p, method, o)->plan, t->found[0].plan);
  }
}

TEST(SearchPlan, OnlyTheEvaluatingMethodsSeePairs) {
  const SearchProblem p = Layers(3.4, 8);
  SearchOptions o;
  o.evaluations = 300;
  EXPECT_NEAR(SearchPlan(p, SearchMethod::kGenetic, o)->quality, Exhaustive(p), 0.5);
  EXPECT_GT(SearchPlan(p, SearchMethod::kGreedy, o)->quality, 8);
}

TEST(SearchPlan, BadProblemsAreNamed) {
  const auto error = [](const SearchProblem& p, SearchMethod m = SearchMethod::kRandom,
                        SearchOptions o = {}) {
    return std::string(SearchPlan(p, m, o).status().message());
  };
  EXPECT_THAT(error(Layers(0.1)), testing::HasSubstr("below the cheapest plan"));
  EXPECT_THAT(error({}), testing::HasSubstr("0 slots"));
  SearchOptions few;
  few.evaluations = 5;
  EXPECT_THAT(error(Layers(2), SearchMethod::kDynamic, few),
              testing::HasSubstr("14 evaluations are needed, 5 allowed"));
  SearchProblem nan = Layers(2);
  nan.cost[0][0] = NAN;
  EXPECT_THAT(error(nan), testing::HasSubstr("costs nan"));
  nan = Layers(2);
  nan.quality = [](const Plan&) -> absl::StatusOr<double> {
    return absl::DataLossError("model is gone");
  };
  EXPECT_THAT(error(nan), testing::HasSubstr("model is gone"));
  nan.quality = [](const Plan&) -> absl::StatusOr<double> { return NAN; };
  EXPECT_TRUE(SearchPlan(nan, SearchMethod::kGenetic, {})
                  .ok());  // some plan within the budget, of unknown quality
}

TEST(AllocateByGain, IsExactForConcaveGainsOfEqualSteps) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    std::vector<std::vector<BudgetOption>> items(5);
    for (size_t i = 0; i < items.size(); ++i) {
      double gain = 0, step = 1 + RandomUniform({seed, i, 0, 0, 0});
      for (int k = 0; k < 4; ++k) {
        items[i].push_back({static_cast<double>(k), gain});
        step *= 0.9 * RandomUniform({seed, i, static_cast<uint64_t>(k), 1, 0});
        gain += step;
      }
    }
    double got = 0, best = 0;
    const auto mine = *AllocateByGain(items, 7), exact = *DynamicProgram(items, 7, 7);
    for (size_t i = 0; i < items.size(); ++i) {
      got += items[i][mine[i]].gain;
      best += items[i][exact[i]].gain;
    }
    EXPECT_NEAR(got, best, 1e-12);
  }
  const std::vector<std::vector<BudgetOption>> two = {{{0, 0}, {1, 1}}, {{0, 0}, {1, 1}, {1, NAN}}};
  EXPECT_THAT(*AllocateByGain(two, 1), testing::ElementsAre(1, 0));  // ties: the lowest item
  EXPECT_FALSE(AllocateByGain(two, -1).ok());
}
}  // namespace search_test
SLUICE_END_NAMESPACE
