#include "sluice/policies/search/genetic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

SLUICE_BEGIN_NAMESPACE
namespace genetic_test {
double MeanOf(const std::vector<double>& x) {
  return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}
double Target(const std::vector<double>& g) {  // wants the pruning at the end
  double f = 0;
  for (size_t i = 0; i < g.size(); ++i) f -= g[i] * static_cast<double>(g.size() - i) * g[i];
  return f;
}
TEST(WaterFill, KeepsTheMeanAndTheRange) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    for (double mean : {0.0, 0.1, 0.3, 0.72}) {
      std::vector<double> g(10);
      for (size_t i = 1; i < g.size(); ++i) g[i] = 3 * RandomUniform({seed, 0, 0, 0, i}) - 1;
      WaterFill(g, 1, mean, 0.9);
      EXPECT_NEAR(MeanOf(g), mean, 1e-9);
      EXPECT_EQ(g[0], 0);
      for (double x : g) EXPECT_TRUE(x >= 0 && x <= 0.9);
    }
  }
}
TEST(GeneticSearch, FindsScheduleAndNeverFalls) {
  GeneticOptions o;
  const auto fitness = [](const std::vector<double>& g) -> absl::StatusOr<double> {
    EXPECT_NEAR(MeanOf(g), 0.3, 1e-9);
    return Target(g);
  };
  auto r = GeneticSearch(6, 0.3, o, fitness);
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_GT(r->fitness, Target({0, 0.36, 0.36, 0.36, 0.36, 0.36}));
  EXPECT_GT(r->best[5], r->best[1]);
  for (size_t i = 1; i < r->history.size(); ++i) EXPECT_GE(r->history[i], r->history[i - 1]);
  auto again = GeneticSearch(6, 0.3, o, fitness);
  EXPECT_EQ(again->best, r->best);  // reproducible from its seed
  auto on = GeneticSearch(6, 0.3, o, fitness, r->best);
  EXPECT_GE(on->fitness, r->fitness - 1e-9);
}
TEST(GeneticSearch, NaNRanksLastAndErrorsAreExplained) {
  GeneticOptions o;
  o.generations = 3;
  auto r = GeneticSearch(4, 0.2, o, [](const std::vector<double>& g) -> absl::StatusOr<double> {
    return g[1] > 0.2 ? std::nan("") : g[1];
  });
  ASSERT_TRUE(r.ok());
  EXPECT_LE(r->best[1], 0.2);
  const auto zero = [](const std::vector<double>&) -> absl::StatusOr<double> { return 0; };
  EXPECT_THAT(std::string(GeneticSearch(6, 0.8, o, zero).status().message()),
              testing::HasSubstr("out of reach"));
  EXPECT_THAT(std::string(GeneticSearch(1, 0.1, o, zero).status().message()),
              testing::HasSubstr("1 genes, 1 fixed"));
  EXPECT_THAT(std::string(GeneticSearch(4, 0.1, o, zero, {1}).status().message()),
              testing::HasSubstr("start of 1"));
  EXPECT_FALSE(GeneticSearch(4, 0.1, o, [](const std::vector<double>&) -> absl::StatusOr<double> {
                 return absl::InternalError("no");
               }).ok());
}
}  // namespace genetic_test
SLUICE_END_NAMESPACE
