#include "sluice/routers/expert/top_k/top_k.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "absl/strings/str_cat.h"
#include "sluice/routers/expert/top_k/top_k_reference.h"
#include "sluice/tests/support/expert_run.h"

SLUICE_BEGIN_NAMESPACE
namespace top_k_test {
constexpr int64_t kItems = 200, kUnits = 16;

std::vector<float> RandomLogits(uint64_t seed, int64_t items = kItems) {
  return NormalRows(items, kUnits, seed, 2);
}
ExpertRun Route(const std::string& options, const std::vector<float>& z,
                const std::vector<float>& bias = {}, int64_t units = kUnits, int threads = 1) {
  RouteInputs in;
  in.items = std::ssize(z) / units;
  in.scores = RowsOf(z, units);
  in.unit_bias = bias;
  return RunExperts("expert/top_k:" + options, in, units, nullptr, threads);
}
std::vector<double> Row(const std::vector<float>& z, int64_t i, int64_t units = kUnits) {
  return {z.begin() + i * units, z.begin() + (i + 1) * units};
}

TEST(TopK, EveryRecipeAgreesWithTheReference) {
  const std::vector<float> z = RandomLogits(1);
  std::vector<float> bias(kUnits);
  for (size_t u = 0; u < bias.size(); ++u)
    bias[u] = static_cast<float>(0.3 * RandomNormal({2, 0, 0, 0, u}));
  const reference::TopKOptions kRecipes[] = {
      {2, "softmax", "none", 1, 1, 1},  {2, "softmax", "sum", 1, 1, 1},
      {4, "logit", "softmax", 1, 1, 1}, {8, "sigmoid", "sum", 2.5, 4, 2},
      {1, "sigmoid", "sum", 3, 1, 1},   {3, "sqrt_softplus", "sum", 1, 1, 1},
      {6, "sigmoid", "none", 1, 8, 3},
  };
  for (const reference::TopKOptions& o : kRecipes) {
    for (bool biased : {false, true}) {
      const ExpertRun r = Route(
          absl::StrCat("k=", o.k, ",score=", o.score, ",renormalise=", o.renormalise,
                       ",scale=", o.scale, ",groups=", o.groups, ",keep_groups=", o.keep_groups),
          z, biased ? bias : std::vector<float>());
      ASSERT_TRUE(r.status.ok()) << r.status;
      for (int64_t i = 0; i < kItems; ++i) {
        const auto want = reference::TopKOfToken(
            Row(z, i),
            biased ? std::vector<double>(bias.begin(), bias.end()) : std::vector<double>(), o);
        ASSERT_EQ(r.a().row_ptr[i + 1] - r.a().row_ptr[i], o.k);
        for (int64_t j = 0; j < o.k; ++j) {
          const int64_t e = r.a().row_ptr[i] + j;
          EXPECT_EQ(r.a().unit[e], want[j].unit) << o.score << " " << i;
          EXPECT_NEAR(r.a().weight[e], want[j].weight, 1e-5 * o.scale);
          EXPECT_NEAR(r.a().score[e], want[j].rank, 1e-5);
        }
      }
    }
  }
}
TEST(TopK, MonotoneScoresChooseTheSame) {
  const std::vector<float> z = RandomLogits(3);
  const auto softmax = Route("k=3", z).AllUnits();
  EXPECT_EQ(Route("k=3,score=sigmoid", z).AllUnits(), softmax);
  EXPECT_EQ(Route("k=3,score=logit,renormalise=softmax", z).AllUnits(), softmax);
}
TEST(TopK, SoftmaxThenSumIsSoftmaxOfTheChosen) {
  const std::vector<float> z = RandomLogits(4);
  std::vector<float> shifted = z;
  for (int64_t i = 0; i < kItems; ++i) {
    for (int64_t u = 0; u < kUnits; ++u) shifted[i * kUnits + u] += static_cast<float>(i % 7);
  }
  const ExpertRun a = Route("k=4", z);
  const ExpertRun b = Route("k=4,score=logit,renormalise=softmax", z);
  const ExpertRun c = Route("k=4", shifted);  // a constant a token changes nothing
  const ExpertRun d =
      Route("k=4,score=sigmoid", shifted);  // nor a sigmoid's choice, but its weights
  const ExpertRun e = Route("k=4,score=sigmoid", z);
  EXPECT_EQ(a.AllUnits(), c.AllUnits());
  EXPECT_EQ(d.AllUnits(), e.AllUnits());
  float apart = 0;
  for (int64_t i = 0; i < a.a().entries(); ++i) {
    EXPECT_NEAR(a.a().weight[i], b.a().weight[i], 1e-6);
    EXPECT_NEAR(a.a().weight[i], c.a().weight[i], 1e-5);
    apart = std::max(apart, std::abs(d.a().weight[i] - e.a().weight[i]));
  }
  EXPECT_GT(apart, 0.01f);
}
// Scores divided by any constant of the token, as by the sum over all experts, give the same
// weights once they are divided by their own sum.
TEST(TopK, AFactorOfATokenDropsOut) {
  const std::vector<float> z = RandomLogits(11);
  const ExpertRun r = Route("k=3,score=sigmoid", z);
  for (int64_t i = 0; i < kItems; ++i) {
    double all = 0;
    for (double x : Row(z, i)) all += 1 / (1 + std::exp(-x));
    double sum = 0;
    for (int32_t u : r.Units(i)) sum += 1 / (1 + std::exp(-Row(z, i)[u])) / all;
    for (int64_t j = 0; j < 3; ++j) {
      const double score = 1 / (1 + std::exp(-Row(z, i)[r.Units(i)[j]]));
      EXPECT_NEAR(r.Weights(i)[j], score / all / sum, 1e-6);
    }
  }
}
TEST(TopK, BiasRanksAndDoesNotWeigh) {
  const std::vector<float> z = RandomLogits(5);
  const ExpertRun plain = Route("k=2,score=sigmoid,renormalise=none", z);
  const ExpertRun even =
      Route("k=2,score=sigmoid,renormalise=none", z, std::vector<float>(kUnits, 0.25f));
  EXPECT_EQ(plain.AllUnits(), even.AllUnits());
  EXPECT_THAT(even.Weights(7), testing::ElementsAreArray(plain.Weights(7)));

  std::vector<float> bias(kUnits, 0.0f);
  bias[9] = INFINITY;
  const ExpertRun forced = Route("k=2,score=sigmoid,renormalise=none", z, bias);
  for (int64_t i = 0; i < kItems; ++i) {
    const auto units = forced.Units(i);
    const auto at = std::find(units.begin(), units.end(), 9);
    ASSERT_NE(at, units.end());
    EXPECT_NEAR(forced.Weights(i)[at - units.begin()], 1 / (1 + std::exp(-Row(z, i)[9])), 1e-6);
  }
}
TEST(TopK, AllExpertsIsTheDenseMixture) {
  const std::vector<float> z = RandomLogits(6);
  const ExpertRun r = Route("k=0,renormalise=none", z);
  for (int64_t i = 0; i < kItems; ++i) {
    double sum = 0;
    for (double x : Row(z, i)) sum += std::exp(x);
    ASSERT_EQ(r.Units(i).size(), size_t{kUnits});
    for (int64_t u = 0; u < kUnits; ++u)
      EXPECT_NEAR(r.Weights(i)[u], std::exp(Row(z, i)[u]) / sum, 1e-6);
  }
}
TEST(TopK, CapacitiesDropBySlotAndKeepTheCount) {
  const std::vector<float> z = RandomLogits(7);
  const ExpertRun all = Route("k=3", z);
  for (const auto& [counts_k, factor, capacity] :
       std::vector<std::tuple<bool, double, int64_t>>{{true, 1.0, 38},   // ceil(200 * 3 / 16)
                                                      {false, 1.0, 13},  // round(200 / 16)
                                                      {true, 0.5, 19},
                                                      {false, 3.0, 38}}) {
    const ExpertRun r = Route(
        absl::StrCat("k=3,capacity=", factor, ",capacity_counts_k=", counts_k ? "true" : "false"),
        z);
    std::vector<std::vector<reference::Chosen>> chosen(kItems);
    for (int64_t i = 0; i < kItems; ++i) {
      chosen[i] = reference::TopKOfToken(Row(z, i), {}, {3, "softmax", "sum", 1, 1, 1});
      std::stable_sort(chosen[i].begin(), chosen[i].end(),
                       [](const auto& a, const auto& b) { return a.rank > b.rank; });
    }
    const auto kept = reference::KeptBySlot(chosen, kUnits, capacity);
    std::vector<int64_t> load(kUnits);
    int64_t drops = 0;
    for (int64_t i = 0; i < kItems; ++i) {
      std::map<int32_t, double> want;
      for (size_t slot = 0; slot < 3; ++slot) {
        if (kept[i][slot])
          want[static_cast<int32_t>(chosen[i][slot].unit)] = chosen[i][slot].weight;
        drops += !kept[i][slot];
      }
      const auto units = r.Units(i);
      ASSERT_EQ(units.size(), want.size()) << i;
      for (size_t j = 0; j < units.size(); ++j) {
        ASSERT_TRUE(want.contains(units[j])) << i;
        EXPECT_NEAR(r.Weights(i)[j], want[units[j]], 1e-5);  // survivors are not renormalised
        ++load[units[j]];
      }
    }
    EXPECT_THAT(load, testing::Each(testing::Le(capacity)));
    EXPECT_EQ(r.a().num_dropped, drops);
    EXPECT_GT(drops, 0);
    EXPECT_EQ(r.a().entries() + r.a().num_dropped, all.a().entries());
  }
  EXPECT_EQ(Route("k=3,capacity=0.001,min_capacity=200", z).a().num_dropped, 0);
}
TEST(TopK, OtherOrdersOfCapacity) {
  // Two experts, room for one each: by slot the first token keeps its first choice, by score the
  // token that wants it most.
  const std::vector<float> z = {1, 0, 3, 0, 0, 1, 0, 2};
  const auto dropped = [&](const std::string& order) {
    const ExpertRun r = Route(
        absl::StrCat("k=1,capacity=0.5,capacity_counts_k=false,capacity_order=", order), z, {}, 2);
    return std::vector<DroppedPair>(r.a().dropped.begin(),
                                    r.a().dropped.begin() + r.a().num_dropped);
  };
  EXPECT_THAT(dropped("slot"), testing::ElementsAre(DroppedPair{1, 0}, DroppedPair{3, 1}));
  EXPECT_THAT(dropped("priority"), testing::ElementsAre(DroppedPair{0, 0}, DroppedPair{2, 1}));
  EXPECT_THAT(dropped("score"), testing::ElementsAre(DroppedPair{0, 0}, DroppedPair{2, 1}));
  EXPECT_THAT(dropped("position"), testing::ElementsAre(DroppedPair{1, 0}, DroppedPair{3, 1}));
}
// A later token's first choice goes before an earlier token's second one by slot, not by position.
TEST(TopK, SlotsGoBeforePositions) {
  const std::vector<float> z = {2, 1, 0, 0, 3, 0};  // tokens choose {0, 1} and {1, 0}
  const auto kept = [&](const std::string& order) {
    return Route("k=2,capacity=0.5,capacity_counts_k=false,min_capacity=1,capacity_order=" + order,
                 z, {}, 3)
        .AllUnits();
  };
  EXPECT_THAT(kept("slot"), testing::ElementsAre(testing::ElementsAre(0), testing::ElementsAre(1)));
  EXPECT_THAT(kept("position"),
              testing::ElementsAre(testing::ElementsAre(0, 1), testing::IsEmpty()));
}
// The two rules in use differ by the factor k: at k = 2 the one has twice the room of the other.
TEST(TopK, WhetherTheCapacityCountsKIsSaid) {
  const std::vector<float> z = RandomLogits(12, 160);
  const auto most = [&](const char* counts) {
    const ExpertRun r = Route(absl::StrCat("k=2,capacity=1,capacity_counts_k=", counts), z);
    std::vector<int64_t> load(kUnits);
    for (int64_t e = 0; e < r.a().entries(); ++e) ++load[r.a().unit[e]];
    return *std::max_element(load.begin(), load.end());
  };
  EXPECT_EQ(most("true"), 20);   // ceil(160 * 2 / 16)
  EXPECT_EQ(most("false"), 10);  // round(160 / 16)
}
TEST(TopK, TiesGoToTheLowestAndNaNIsCounted) {
  EXPECT_EQ(Route("k=2", std::vector<float>(8, 1.0f), {}, 8).Units(0),
            (std::vector<int32_t>{0, 1}));
  const std::vector<float> z = {NAN, 1, NAN, 3, NAN, NAN, NAN, NAN};
  for (const char* score : {"softmax", "sigmoid"}) {
    const ExpertRun r = Route(absl::StrCat("k=2,score=", score), z, {}, 4);
    EXPECT_EQ(r.Units(0), (std::vector<int32_t>{1, 3}));
    EXPECT_TRUE(r.Units(1).empty());
    EXPECT_EQ(r.a().nan_scores, 6);
  }
  EXPECT_NEAR(Route("k=2", z, {}, 4).Weights(0)[1], 1 / (1 + std::exp(-2.0)), 1e-6);
}
TEST(TopK, TheSameForAnyNumberOfThreads) {
  const std::vector<float> z = RandomLogits(8, 3000);
  for (const char* options : {"k=2", "k=3,capacity=0.7", "k=3,capacity=0.7,capacity_order=position",
                              "k=4,groups=4,keep_groups=2"}) {
    const ExpertRun one = Route(options, z);
    for (int threads : {2, 8}) {
      const ExpertRun many = Route(options, z, {}, kUnits, threads);
      EXPECT_EQ(many.AllUnits(), one.AllUnits()) << options;
      EXPECT_EQ(many.a().num_dropped, one.a().num_dropped);
      for (int64_t e = 0; e < one.a().entries(); ++e)
        ASSERT_EQ(many.a().weight[e], one.a().weight[e]);
    }
  }
}
TEST(TopK, ErrorsSayWhatIsWrong) {
  const std::vector<float> z = RandomLogits(9);
  const auto error = [&](const std::string& options) {
    return std::string(Route(options, z).status.message());
  };
  using testing::HasSubstr;
  EXPECT_THAT(error("k=17"), HasSubstr("k=17 of 16 experts"));
  EXPECT_THAT(error("renormalise=softmax"), HasSubstr("score=logit"));
  EXPECT_THAT(error("score=logit"), HasSubstr("softmax or none"));
  EXPECT_THAT(error("groups=3,k=2"), HasSubstr("groups=3 do not divide 16 experts"));
  EXPECT_THAT(error("groups=4,keep_groups=2,k=3"), HasSubstr("k=3 is no positive multiple"));
  EXPECT_THAT(error("keep_groups=2"), HasSubstr("keep_groups=2 of groups=1"));
  EXPECT_THAT(error("min_capacity=3"), HasSubstr("would be ignored"));
  EXPECT_THAT(error("score=tanh"), HasSubstr("is not one of softmax, sigmoid"));
  auto router = BuiltinRouters().routers.Create("top_k");
  EXPECT_THAT((*router)->MakePlan({.items = 4}).status().message(), HasSubstr("0 units"));
}
}  // namespace top_k_test
SLUICE_END_NAMESPACE
