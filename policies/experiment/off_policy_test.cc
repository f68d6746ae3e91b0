#include "sluice/policies/experiment/off_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace {
TEST(OffPolicy, SmallCaseByHand) {
  // Weights 2 and 0.5; rewards 1 and 0.
  const LoggedDecision log[] = {{1, 0.25, 0.5, 0.6, 0.7}, {0, 0.8, 0.4, 0.2, 0.3}};
  EXPECT_DOUBLE_EQ(EvaluateOffPolicy(log, OffPolicy::kIps)->value, 1.0);
  EXPECT_DOUBLE_EQ(EvaluateOffPolicy(log, OffPolicy::kSnips)->value, 2 / 2.5);
  EXPECT_DOUBLE_EQ(EvaluateOffPolicy(log, OffPolicy::kDirect)->value, 0.5);
  EXPECT_DOUBLE_EQ(EvaluateOffPolicy(log, OffPolicy::kDr)->value, 0.5 + (2 * 0.4 - 0.5 * 0.2) / 2);
  EXPECT_DOUBLE_EQ(EvaluateOffPolicy(log, OffPolicy::kSwitchDr, 1)->value, 0.5 - 0.5 * 0.2 / 2);
  const auto e = *EvaluateOffPolicy(log, OffPolicy::kIps);
  EXPECT_DOUBLE_EQ(e.effective_samples, 6.25 / 4.25);
  EXPECT_EQ(e.largest_weight, 2);
  EXPECT_FALSE(e.reliable);
}

TEST(OffPolicy, TheLoggingPolicyIsWorthItsMean) {
  std::vector<LoggedDecision> log;
  double mean = 0;
  for (uint64_t i = 0; i < 500; ++i) {
    const double p = 0.1 + 0.8 * RandomUniform({1, i, 0, 0, 0}), r = RandomUniform({2, i, 0, 0, 0});
    log.push_back({r, p, p, 0.5, 0.5});
    mean += r / 500;
  }
  for (OffPolicy how : {OffPolicy::kIps, OffPolicy::kSnips, OffPolicy::kDr}) {
    EXPECT_NEAR(EvaluateOffPolicy(log, how)->value, mean, 1e-12);
    EXPECT_TRUE(EvaluateOffPolicy(log, how)->reliable);
  }
}

// Contexts of known mean rewards; an independent log each time. How often does the interval hold
// the truth?
struct World {
  double mean[8][5], logging[8][5], target[8][5], model[8][5];
  World() {
    for (int c = 0; c < 8; ++c) {
      double l = 0, t = 0;
      for (int a = 0; a < 5; ++a) {
        auto draw = [&](uint64_t unit) {
          return RandomUniform({3, static_cast<uint64_t>(c), static_cast<uint64_t>(a), unit, 0});
        };
        mean[c][a] = draw(0);
        l += logging[c][a] = 0.3 + draw(1);
        t += target[c][a] = std::exp(3 * mean[c][a]);
        model[c][a] =
            std::clamp(mean[c][a] + 0.3 * (draw(2) - 0.5), 0.0, 1.0);  // a model that is wrong
      }
      for (int a = 0; a < 5; ++a) {
        logging[c][a] /= l;
        target[c][a] /= t;
      }
    }
  }
  double Truth() const {
    double v = 0;
    for (int c = 0; c < 8; ++c) {
      for (int a = 0; a < 5; ++a) v += target[c][a] * mean[c][a] / 8;
    }
    return v;
  }
  std::vector<LoggedDecision> Log(uint64_t seed, int n) const {
    std::vector<LoggedDecision> log;
    for (int i = 0; i < n; ++i) {
      auto draw = [&](uint64_t unit) {
        return RandomUniform({seed, static_cast<uint64_t>(i), 5, unit, 0});
      };
      const int c = static_cast<int>(draw(0) * 8);
      int a = 0;
      for (double u = draw(1) - logging[c][0]; u >= 0 && a < 4; u -= logging[c][a]) ++a;
      double model_target = 0;
      for (int k = 0; k < 5; ++k) model_target += target[c][k] * model[c][k];
      log.push_back({draw(2) < mean[c][a] ? 1.0 : 0.0, logging[c][a], target[c][a], model[c][a],
                     model_target});
    }
    return log;
  }
};
TEST(OffPolicy, IntervalsHoldTheTruth) {
  const World w;
  const double truth = w.Truth();
  int ips = 0, snips = 0, dr = 0, direct = 0;
  double width_snips = 0, width_dr = 0;
  for (uint64_t run = 0; run < 1000; ++run) {
    const auto log = w.Log(100 + run, 1000);
    auto holds = [&](OffPolicy how) {
      const auto e = *EvaluateOffPolicy(log, how);
      if (how == OffPolicy::kSnips) width_snips += e.high - e.low;
      if (how == OffPolicy::kDr) width_dr += e.high - e.low;
      return e.low <= truth && truth <= e.high;
    };
    ips += holds(OffPolicy::kIps);
    snips += holds(OffPolicy::kSnips);
    dr += holds(OffPolicy::kDr);
    direct += holds(OffPolicy::kDirect);
  }
  EXPECT_GE(ips, 900);
  EXPECT_GE(snips, 930);
  EXPECT_GE(dr, 930);
  EXPECT_LT(direct, 930);  // a wrong model alone does not
  EXPECT_LT(width_dr, width_snips);
}

TEST(OffPolicy, ALogThatNeverDidItIsNotReliable) {
  std::vector<LoggedDecision> log(1000, {1, 0.5, 0, 0, 0});
  log[3].target = 1;
  EXPECT_FALSE(EvaluateOffPolicy(log, OffPolicy::kSnips)->reliable);
}

TEST(OffPolicy, RefusesWhatCannotBe) {
  auto error = [](LoggedDecision bad) {
    return std::string(
        EvaluateOffPolicy(std::vector<LoggedDecision>{{1, 1, 1, 0, 0}, bad}, OffPolicy::kIps)
            .status()
            .message());
  };
  EXPECT_THAT(error({1, 0, 1, 0, 0}), testing::HasSubstr("decision 1 has propensity 0"));
  EXPECT_THAT(error({1, NAN, 1, 0, 0}), testing::HasSubstr("propensity nan"));
  EXPECT_THAT(error({1, 0.5, 2, 0, 0}), testing::HasSubstr("target 2"));
  EXPECT_THAT(error({NAN, 0.5, 1, 0, 0}), testing::HasSubstr("reward nan"));
  EXPECT_FALSE(EvaluateOffPolicy({}, OffPolicy::kIps).ok());
}
}  // namespace
SLUICE_END_NAMESPACE
