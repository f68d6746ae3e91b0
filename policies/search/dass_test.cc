#include "sluice/policies/search/dass.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/policies/search/search.h"

SLUICE_BEGIN_NAMESPACE
namespace dass_test {
using search_internal::Discretise;
using search_internal::Evaluations;
using search_internal::ExpectedCost;
using search_internal::SharesWithin;
using testing::HasSubstr;

SearchProblem Random(uint64_t seed, double budget, int slots = 5, int choices = 4) {
  SearchProblem p;
  Mixture gain;
  for (int i = 0; i < slots; ++i) {
    std::vector<double>& cost = p.cost.emplace_back();
    std::vector<double>& g = gain.emplace_back();
    for (int k = 0; k < choices; ++k) {
      const auto slot = static_cast<uint64_t>(i);
      const auto choice = static_cast<uint64_t>(k);
      cost.push_back(RandomUniform({seed, slot, choice, 0, 0}) * (k + 1));
      g.push_back(RandomUniform({seed, slot, choice, 1, 0}) * (k + 1));
    }
  }
  double least = 0;
  double most = 0;
  for (const auto& c : p.cost) {
    least += *std::min_element(c.begin(), c.end());
    most += *std::max_element(c.begin(), c.end());
  }
  p.budget = least + budget * (most - least);
  p.quality = [gain](const Plan& plan) -> absl::StatusOr<double> {
    double q = 0;
    for (size_t i = 0; i < plan.size(); ++i) q += gain[i][plan[i]];
    return q;
  };
  return p;
}

// Against the KL projection by its conditions: where the budget binds, the logarithm of the ratio
// of a slot's shares is the difference of the logits less one price for the whole problem times the
// difference of the costs, and the price is not negative.
TEST(Dass, SharesAreTheClosestWithinTheBudget) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    for (double budget : {0.0, 0.05, 0.3, 1.0}) {
      const SearchProblem p = Random(seed, budget);
      Mixture logits;
      for (size_t i = 0; i < p.cost.size(); ++i) {
        logits.emplace_back();
        for (size_t k = 0; k < p.cost[i].size(); ++k)
          logits[i].push_back(4 * RandomNormal({seed, i, k, 2, 0}));
      }
      const Mixture shares = SharesWithin(p, logits);
      EXPECT_LE(ExpectedCost(p, shares), p.budget * (1 + 1e-9));
      double price = NAN;
      for (size_t i = 0; i < shares.size(); ++i) {
        double sum = 0;
        for (double x : shares[i]) sum += x;
        EXPECT_NEAR(sum, 1, 1e-12);
        for (size_t k = 1; k < shares[i].size(); ++k) {
          const double costs = p.cost[i][k] - p.cost[i][0];
          if (shares[i][k] < 1e-200 || shares[i][0] < 1e-200 || std::abs(costs) < 1e-2) continue;
          const double mine =
              (logits[i][k] - logits[i][0] - std::log(shares[i][k] / shares[i][0])) / costs;
          if (std::isnan(price)) price = mine;
          EXPECT_NEAR(mine, price, 1e-6 * (1 + std::abs(price))) << seed << " " << budget;
        }
      }
      EXPECT_TRUE(std::isnan(price) || price > -1e-9);
      const bool binds = price > 1e-6 && budget > 0.01;
      if (binds) {
        EXPECT_NEAR(ExpectedCost(p, shares), p.budget, 1e-6 * p.budget);
      }
    }
  }
}

TEST(Dass, DiscretisesToTheLargestShareAndLowersWhatCostsTooMuch) {
  SearchProblem p;
  p.cost = {{1, 4}, {1, 4}};
  p.budget = 5;
  const SearchOptions o;
  const Evaluations e(p, o);
  EXPECT_EQ(Discretise(p, e, {{0.4, 0.6}, {0.7, 0.3}}), (Plan{1, 0}));
  EXPECT_EQ(Discretise(p, e, {{0.5, 0.5}, {0.5, 0.5}}), (Plan{0, 0}));
  EXPECT_EQ(Discretise(p, e, {{0.4, 0.6}, {0.1, 0.9}}), (Plan{0, 1}));
  EXPECT_EQ(Discretise(p, e, {{0.1, 0.9}, {0.4, 0.6}}), (Plan{1, 0}));
  EXPECT_EQ(Discretise(p, e, {{0.0, 1.0}, {0.0, 1.0}}), (Plan{0, 1}));  // a tie: the first slot
}

TEST(Dass, IsNeverWorseThanItsStartMeetsTheCostAndIsReproducible) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    const SearchProblem p = Random(seed, 0.2);
    const SearchOptions none;
    const Evaluations e(p, none);
    Mixture even;
    for (const auto& c : p.cost) even.emplace_back(c.size(), 0.0);
    const double start = *p.quality(Discretise(p, e, SharesWithin(p, even)));
    for (int64_t evaluations : {2, 10, 40}) {
      SearchOptions o;
      o.seed = seed;
      o.evaluations = evaluations;
      const auto r = SearchPlan(p, SearchMethod::kDass, o);
      ASSERT_TRUE(r.ok()) << r.status();
      EXPECT_GE(r->quality, start);
      EXPECT_EQ(r->history.front(), start);
      EXPECT_LE(r->cost, p.budget * (1 + 1e-9));
      EXPECT_LE(r->evaluations, evaluations);
      EXPECT_EQ(*p.quality(r->plan), r->quality);
      EXPECT_EQ(SearchPlan(p, SearchMethod::kDass, o)->plan, r->plan);
    }
  }
}

// A single slot: the score function's estimate over all plans is the exact gradient, so that both
// go the same way.
TEST(Dass, TheEstimateLeadsWhereTheGradientDoes) {
  SearchProblem p;
  p.cost = {{0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}};
  p.budget = 1;
  const double gain[] = {0, 1, 3, 2};
  p.quality = [&](const Plan& plan) -> absl::StatusOr<double> {
    return gain[plan[0]] + gain[plan[1]] + gain[plan[2]];
  };
  SearchOptions o;
  o.evaluations = 40;
  o.dass.relaxed = 1;
  int found = 0;
  for (o.seed = 1; o.seed <= 20; ++o.seed)
    found += SearchPlan(p, SearchMethod::kDass, o)->quality >= 9 ? 1 : 0;
  EXPECT_GE(found, 16);
  o.seed = 1;
  o.evaluations = 12;
  p.relaxed = [&](const Mixture& m) -> absl::StatusOr<RelaxedQuality> {
    RelaxedQuality r;
    r.gradient.assign(m.size(), {0, 1, 3, 2});
    return r;
  };
  EXPECT_EQ(SearchPlan(p, SearchMethod::kDass, o)->plan, (Plan{2, 2, 2}));
}

TEST(Dass, NaNQualitiesAndBadSettingsAreTold) {
  SearchProblem p = Random(1, 0.5);
  const auto quality = p.quality;
  p.quality = [&](const Plan& plan) -> absl::StatusOr<double> {
    return plan[0] == 3 ? absl::StatusOr<double>(NAN) : quality(plan);
  };
  const auto r = SearchPlan(p, SearchMethod::kDass, {});
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_NE(r->plan[0], 3);
  const auto error = [&](const DassOptions& d) {
    SearchOptions o;
    o.dass = d;
    return std::string(SearchPlan(p, SearchMethod::kDass, o).status().message());
  };
  EXPECT_THAT(error({.rate = 0}), HasSubstr("rate 0"));
  EXPECT_THAT(error({.batch = 1}), HasSubstr("batches of 1"));
  EXPECT_THAT(error({.relaxed = 1.5}), HasSubstr("a share of 1.5 for the relaxation"));
  p.relaxed = [](const Mixture& m) -> absl::StatusOr<RelaxedQuality> {
    RelaxedQuality g;
    g.gradient = m;
    g.gradient[1].pop_back();
    return g;
  };
  EXPECT_THAT(error({}), HasSubstr("slot 1 has a gradient of 3 choices, wanted 4"));
  p.relaxed = [](const Mixture&) -> absl::StatusOr<RelaxedQuality> { return RelaxedQuality{}; };
  EXPECT_THAT(error({}), HasSubstr("a gradient of 0 slots, wanted 5"));
}
}  // namespace dass_test
SLUICE_END_NAMESPACE
