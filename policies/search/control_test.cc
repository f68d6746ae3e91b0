#include "sluice/policies/search/control.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

SLUICE_BEGIN_NAMESPACE
namespace control_test {
using testing::HasSubstr;

// Eight layers, three operators each, of which the exact optimum is known by trying all 6561. The
// gain of a layer's choice does not depend on the others', but for a penalty where neighbours are
// both pruned hard, which additive searches do not see.
constexpr int kSlots = 8;
constexpr double kMatters[kSlots] = {4, 0.1, 2, 0.3, 0.2, 1, 0.1, 3};
constexpr double kLost[] = {0, 0.3, 1};
SearchProblem Layers(double together) {
  SearchProblem p;
  p.cost.assign(kSlots, {1.0, 0.5, 0.25});
  p.budget = 4.5;
  p.quality = [together](const Plan& plan) -> absl::StatusOr<double> {
    double q = 0;
    for (int i = 0; i < kSlots; ++i) q -= kMatters[i] * kLost[plan[i]];
    for (int i = 1; i < kSlots; ++i) q -= plan[i] == 2 && plan[i - 1] == 2 ? together : 0;
    return q;
  };
  // The expected quality of independent choices, which is what a mixture stands for.
  p.relaxed = [together](const Mixture& m) -> absl::StatusOr<RelaxedQuality> {
    RelaxedQuality r;
    for (int i = 0; i < kSlots; ++i) {
      std::vector<double>& g = r.gradient.emplace_back(3);
      for (int k = 0; k < 3; ++k) {
        g[k] = -kMatters[i] * kLost[k];
        r.quality += m[i][k] * g[k];
      }
      if (i > 0) g[2] -= together * m[i - 1][2];
      if (i > 0) r.quality -= together * m[i][2] * m[i - 1][2];
      if (i + 1 < kSlots) g[2] -= together * m[i + 1][2];
    }
    return r;
  };
  return p;
}
double Optimum(const SearchProblem& p) {
  double best = -INFINITY;
  for (int code = 0; code < 6561; ++code) {
    Plan plan;
    double cost = 0;
    for (int i = 0, c = code; i < kSlots; ++i, c /= 3) {
      plan.push_back(c % 3);
      cost += p.cost[i][c % 3];
    }
    if (cost <= p.budget) best = std::max(best, *p.quality(plan));
  }
  return best;
}

TEST(TrySearch, EverySearchBeatsOrTiesRandomSearchWhereTheOptimumIsKnown) {
  for (double together : {0.0, 0.2}) {
    const SearchProblem p = Layers(together);
    SearchProblem plans_only = p;
    plans_only.relaxed = nullptr;
    const double optimum = Optimum(p);
    SearchOptions o;
    o.evaluations = 60;
    for (SearchMethod m : {SearchMethod::kGreedy, SearchMethod::kGenetic, SearchMethod::kDynamic,
                           SearchMethod::kBudget, SearchMethod::kDass}) {
      for (const bool gradient : {true, false}) {
        if (!gradient && m != SearchMethod::kDass) continue;
        const auto t = TrySearch(gradient ? p : plans_only, m, o, 8);
        ASSERT_TRUE(t.ok()) << t.status();
        const std::string what =
            absl::StrCat(kSearchMethods[static_cast<int>(m)], " ", together, ": ",
                         VerdictText(t->gains), gradient ? "" : ", plans only");
        EXPECT_NE(t->gains.verdict, SearchVerdict::kLoses) << what;
        for (size_t s = 0; s < t->found.size(); ++s) {
          EXPECT_LE(t->found[s].cost, p.budget * (1 + 1e-9)) << what;
          EXPECT_LE(t->found[s].evaluations, o.evaluations) << what;
          EXPECT_EQ(t->random[s].evaluations, t->found[s].evaluations) << what;
          EXPECT_LE(t->found[s].quality, optimum + 1e-12) << what;
          EXPECT_LE(t->random[s].quality, optimum + 1e-12) << what;
        }
        // With the gradient, and where gains add, the optimum itself.
        if (m == SearchMethod::kDynamic && together == 0) {
          EXPECT_NEAR(t->found[0].quality, optimum, 1e-12) << what;
        }
        if (m == SearchMethod::kDass && gradient) {
          EXPECT_EQ(t->gains.verdict, SearchVerdict::kBeats) << what;
          EXPECT_NEAR(t->found[0].quality, optimum, 1e-12) << what;
        }
      }
    }
  }
}

// Like sparse operators of a model at half of its weights: what slots lose adds up to more than its
// sum, so that from the dense plan, far outside of the budget, little is to be seen of the plans
// within; slots matter by up to ten times as much as others, and half of the operators cost the
// same. The least sum is the best plan, and dynamic programming of the losses finds it.
TEST(TrySearch, EverySearchBeatsRandomSearchFarFromTheDearestPlan) {
  constexpr size_t kMany = 12;
  const std::vector<double> kept = {1, 0.5, 0.5, 0.4, 0.3, 0.5, 0.4, 0.3};
  const std::vector<double> lost = {0, 0.5, 0.6, 0.8, 1.6, 0.3, 0.5, 1.0};
  for (uint64_t draw = 1; draw <= 4; ++draw) {
    std::vector<std::vector<BudgetOption>> items(kMany);
    SearchProblem p;
    p.budget = 0.5 * kMany;
    for (size_t i = 0; i < kMany; ++i) {
      const double matters = std::pow(10, RandomUniform({draw, i, 0, 0, 0}) - 0.5) / kMany;
      p.cost.push_back(kept);
      for (size_t k = 0; k < kept.size(); ++k) {
        const double share = 0.8 + 0.4 * RandomUniform({draw, i, k, 1, 0});
        items[i].push_back({kept[k], -matters * share * lost[k]});
      }
    }
    const auto sum = [&](const Plan& plan) {
      double loss = 0;
      for (size_t i = 0; i < plan.size(); ++i) loss -= items[i][plan[i]].gain;
      return loss;
    };
    p.quality = [&](const Plan& plan) -> absl::StatusOr<double> {
      const double loss = sum(plan);
      return -loss - 2 * loss * loss;
    };
    const double optimum = *p.quality(*DynamicProgram(items, p.budget, 2400));
    double uniform = -INFINITY;
    for (int k = 1; k < std::ssize(kept); ++k)
      uniform = std::max(uniform, *p.quality(Plan(kMany, k)));
    SearchOptions o;
    o.evaluations = 100;
    for (SearchMethod m : {SearchMethod::kGreedy, SearchMethod::kGenetic, SearchMethod::kDynamic,
                           SearchMethod::kBudget, SearchMethod::kDass}) {
      const auto t = TrySearch(p, m, o, 8);
      ASSERT_TRUE(t.ok()) << t.status();
      const std::string what =
          absl::StrCat(kSearchMethods[static_cast<int>(m)], ": ", VerdictText(t->gains));
      EXPECT_EQ(t->gains.verdict, SearchVerdict::kBeats) << what;
      for (const SearchResult& r : t->found) {
        EXPECT_LE(r.cost, p.budget * (1 + 1e-9)) << what;
        EXPECT_LE(r.evaluations, o.evaluations) << what;
        EXPECT_LE(r.quality, optimum + 1e-12) << what;
        EXPECT_GE(r.quality, uniform) << what;  // where they start
        if (m == SearchMethod::kGreedy) {
          EXPECT_GE(r.quality, (uniform + optimum) / 2) << what;
        }
      }
    }
  }
}

TEST(TrySearch, ASearchThatLosesIsSaidToLose) {
  // What is uniform, where greedy starts, is bad, and so is all that is near; random search is not
  // near.
  SearchProblem p;
  p.cost.assign(6, {0.0, 1.0, 2.0});
  p.budget = 12;
  p.quality = [](const Plan& plan) -> absl::StatusOr<double> {
    double q = 0;
    for (size_t i = 1; i < plan.size(); ++i) q += plan[i] != plan[i - 1] ? 1 : 0;
    return q;
  };
  SearchOptions o;
  o.evaluations = 5;
  const auto t = TrySearch(p, SearchMethod::kGreedy, o, 8);
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_EQ(t->gains.verdict, SearchVerdict::kLoses) << VerdictText(t->gains);
  EXPECT_THAT(VerdictText(t->gains), HasSubstr("loses to random search: quality -"));
}

TEST(TrySearch, IsTheSameAgainAndMeasuresNothingTwice) {
  int64_t asked = 0;
  std::map<Plan, int> seen;
  SearchProblem p = Layers(0.2);
  const auto quality = p.quality;
  p.relaxed = nullptr;
  p.quality = [&](const Plan& plan) {
    ++asked;
    EXPECT_EQ(++seen[plan], 1);
    return quality(plan);
  };
  SearchOptions o;
  o.evaluations = 30;
  const auto t = *TrySearch(p, SearchMethod::kGenetic, o, 3);
  seen.clear();
  const auto again = *TrySearch(p, SearchMethod::kGenetic, o, 3);
  EXPECT_LT(asked, 2 * 2 * 3 * 30);
  EXPECT_EQ(t.gains.gains, again.gains.gains);
  for (int s = 0; s < 3; ++s) {
    EXPECT_EQ(t.found[s].plan, again.found[s].plan);
    EXPECT_EQ(t.random[s].plan, again.random[s].plan);
    SearchOptions alone = o;
    alone.seed = o.seed + s;
    seen.clear();
    EXPECT_EQ(SearchPlan(p, SearchMethod::kGenetic, alone)->plan, t.found[s].plan);
  }
}

TEST(TrySearch, RefusesWhatSaysNothing) {
  const SearchProblem p = Layers(0);
  EXPECT_THAT(std::string(TrySearch(p, SearchMethod::kRandom, {}, 5).status().message()),
              HasSubstr("is the control"));
  EXPECT_THAT(std::string(TrySearch(p, SearchMethod::kGreedy, {}, 1).status().message()),
              HasSubstr("1 seeds; a verdict wants 2 or more"));
}

TEST(JudgeSearch, VerdictsFollowTheInterval) {
  const auto verdict = [](const std::vector<double>& a, const std::vector<double>& b) {
    return JudgeSearch(a, b, 1).verdict;
  };
  const std::vector<double> zero(5);
  EXPECT_EQ(verdict({1, 1.1, 0.9, 1, 1.2}, zero), SearchVerdict::kBeats);
  EXPECT_EQ(verdict({-1, -1.1, -0.9, -1, -1.2}, zero), SearchVerdict::kLoses);
  EXPECT_EQ(verdict({1, -1, 0.5, -0.4, 0.1}, zero), SearchVerdict::kTies);
  EXPECT_EQ(verdict(zero, zero), SearchVerdict::kTies);
  EXPECT_EQ(verdict({2, 2}, {1, 1}), SearchVerdict::kBeats);
  const double inf = INFINITY;
  EXPECT_EQ(verdict({-inf, -inf}, {-inf, -inf}), SearchVerdict::kTies);
  EXPECT_EQ(verdict({1, 1}, {-inf, -inf}), SearchVerdict::kBeats);
  EXPECT_EQ(verdict({1, -inf}, {-inf, -inf}), SearchVerdict::kTies);
  EXPECT_EQ(verdict({-inf, -inf}, {0, 1}), SearchVerdict::kLoses);
  const SearchGains g = JudgeSearch({{1, 0, 3}}, {{0, 0, 4}}, 1);
  EXPECT_EQ(g.better, 1);
  EXPECT_EQ(g.equal, 1);
  EXPECT_EQ(g.worse, 1);
  EXPECT_NEAR(g.mean.value, 0, 1e-12);
}

TEST(SearchPlan, RandomSearchNeverFallsAndOneEvaluationIsOneDraw) {
  const SearchProblem p = Layers(0.2);
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SearchOptions o;
    o.seed = seed;
    o.evaluations = 25;
    const SearchResult many = *SearchPlan(p, SearchMethod::kRandom, o);
    ASSERT_EQ(std::ssize(many.history), 25);
    EXPECT_TRUE(std::is_sorted(many.history.begin(), many.history.end()));
    EXPECT_EQ(many.history.back(), many.quality);
    o.evaluations = 1;
    const SearchResult one = *SearchPlan(p, SearchMethod::kRandom, o);
    EXPECT_EQ(one.evaluations, 1);
    EXPECT_EQ(one.quality, many.history.front());
  }
}
}  // namespace control_test
SLUICE_END_NAMESPACE
