#include "sluice/policies/search/random_masks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "sluice/policies/common/quantile.h"

SLUICE_BEGIN_NAMESPACE
namespace random_masks_test {
using testing::HasSubstr;

TEST(RandomMask, HasExactlySoManyNodes) {
  for (int64_t nodes : {1, 2, 7, 64, 100}) {
    for (int64_t stay = 0; stay <= nodes; ++stay) {
      const NodeMask m = RandomMask(nodes, stay, 3, static_cast<uint64_t>(stay));
      EXPECT_EQ(std::ssize(m), nodes);
      EXPECT_EQ(std::accumulate(m.begin(), m.end(), int64_t{0}), stay);
    }
  }
}

// All C(6, 2) masks are as likely, and so is every node and every pair of neighbours.
TEST(RandomMask, IsUniform) {
  constexpr int64_t kDraws = 15000;
  std::map<NodeMask, int64_t> seen;
  std::vector<int64_t> nodes(6);
  for (uint64_t d = 0; d < kDraws; ++d) {
    const NodeMask m = RandomMask(6, 2, 1, d);
    ++seen[m];
    for (size_t i = 0; i < 6; ++i) nodes[i] += m[i];
  }
  ASSERT_EQ(seen.size(), 15u);
  double chi = 0;
  for (const auto& [mask, n] : seen)
    chi += std::pow(double(n) - kDraws / 15.0, 2) / (kDraws / 15.0);
  EXPECT_GT(ChiSquareTail(chi, 14), 1e-3) << chi;
  const double share = 1.0 / 3;
  double marginal = 0;
  for (int64_t n : nodes)
    marginal += std::pow(double(n) - kDraws * share, 2) / (kDraws * share * (1 - share));
  EXPECT_GT(ChiSquareTail(marginal * 5 / 6, 5), 1e-3) << marginal;
}

// Loss: the summed positions that stay; the least that three of ten can have is 0 + 1 + 2.
double Positions(const NodeMask& m) {
  double sum = 0;
  for (size_t i = 0; i < m.size(); ++i) sum += m[i] != 0 ? static_cast<double>(i) : 0;
  return sum;
}
TEST(SearchRandomMasks, CountsRepeatsButMeasuresThemOnce) {
  std::map<NodeMask, int> asked;
  const auto loss = [&](const NodeMask& m) -> absl::StatusOr<double> {
    EXPECT_EQ(++asked[m], 1);
    return Positions(m);
  };
  const auto r = SearchRandomMasks(10, 3, 2000, 5, loss);  // of 120 masks
  ASSERT_TRUE(r.ok()) << r.status();
  EXPECT_EQ(std::ssize(r->history), 2000);
  EXPECT_EQ(asked.size(), 120u);
  EXPECT_EQ(r->loss, 3);
  EXPECT_THAT(r->mask, testing::ElementsAre(1, 1, 1, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_TRUE(std::is_sorted(r->history.rbegin(), r->history.rend()));
  EXPECT_EQ(r->history.front(), r->unsearched);
  asked.clear();
  EXPECT_EQ(SearchRandomMasks(10, 3, 2000, 5, loss)->mask, r->mask);
  asked.clear();
  EXPECT_NE(SearchRandomMasks(10, 3, 2000, 6, loss)->history, r->history);
}
TEST(SearchRandomMasks, OneEvaluationIsARandomMask) {
  const auto loss = [](const NodeMask& m) -> absl::StatusOr<double> { return Positions(m); };
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const auto r = SearchRandomMasks(10, 3, 1, seed, loss);
    EXPECT_EQ(r->mask, RandomMask(10, 3, seed, 0));
    EXPECT_EQ(r->loss, r->unsearched);
  }
}
TEST(SearchRandomMasks, NaNIsNeverKeptAndErrorsAreTold) {
  const auto odd = [](const NodeMask& m) -> absl::StatusOr<double> {
    return m[0] != 0 ? NAN : Positions(m);
  };
  const auto r = SearchRandomMasks(4, 2, 200, 1, odd);
  EXPECT_THAT(r->mask, testing::ElementsAre(0, 1, 1, 0));
  const auto any = [](const NodeMask&) -> absl::StatusOr<double> { return 0; };
  EXPECT_THAT(std::string(SearchRandomMasks(4, 5, 1, 1, any).status().message()),
              HasSubstr("5 of 4 nodes stay, 1 evaluations; allowed"));
  EXPECT_FALSE(SearchRandomMasks(0, 0, 1, 1, any).ok());
  EXPECT_FALSE(SearchRandomMasks(4, 2, 0, 1, any).ok());
  EXPECT_FALSE(SearchRandomMasks(4, 2, 1, 1, [](const NodeMask&) -> absl::StatusOr<double> {
                 return absl::InternalError("no");
               }).ok());
}
}  // namespace random_masks_test
SLUICE_END_NAMESPACE
