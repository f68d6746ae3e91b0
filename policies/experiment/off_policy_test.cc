#include "sluice/policies/experiment/off_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace off_policy_test {
TEST(OffPolicy, SmallCaseByHand) {
  // Weights 2 and 0.5; rewards 1 and 0; residuals 0.4 and -0.2; models of the target 0.7 and 0.3.
  const LoggedDecision log[] = {{1, 0.25, 0.5, 0.6, 0.7}, {0, 0.8, 0.4, 0.2, 0.3}};
  const OffPolicyOptions o = {.clip = 1.5, .switch_at = 1, .shrink = 4};
  const auto value = [&](OffPolicy how) { return EvaluateOffPolicy(log, how, o)->value; };
  EXPECT_DOUBLE_EQ(value(OffPolicy::kIps), 1.0);
  EXPECT_DOUBLE_EQ(value(OffPolicy::kClippedIps), 1.5 / 2);
  EXPECT_DOUBLE_EQ(value(OffPolicy::kSnips), 2 / 2.5);
  EXPECT_DOUBLE_EQ(value(OffPolicy::kDirect), 0.5);
  EXPECT_DOUBLE_EQ(value(OffPolicy::kDr), 0.5 + (2 * 0.4 - 0.5 * 0.2) / 2);
  EXPECT_DOUBLE_EQ(value(OffPolicy::kSndr), 0.5 + (2 * 0.4 - 0.5 * 0.2) / 2.5);
  EXPECT_DOUBLE_EQ(value(OffPolicy::kSwitchDr), 0.5 - 0.5 * 0.2 / 2);
  EXPECT_DOUBLE_EQ(value(OffPolicy::kDrOs),
                   0.5 + (4 * 2 / (4 + 4.0) * 0.4 - 4 * 0.5 / (0.25 + 4) * 0.2) / 2);
  const auto e = *EvaluateOffPolicy(log, OffPolicy::kIps);
  EXPECT_DOUBLE_EQ(e.gain.value, 1.0 - 0.5);
  EXPECT_DOUBLE_EQ(e.overlap.effective_decisions, 6.25 / 4.25);
  EXPECT_EQ(e.overlap.largest_weight, 2);
  EXPECT_DOUBLE_EQ(e.overlap.mean_weight, 1.25);
  EXPECT_DOUBLE_EQ(e.overlap.top_share, 0.8);
  EXPECT_FALSE(e.reliable);
  EXPECT_EQ(e.overlap.reason, "1.5 effective decisions, wanted 100");
}

// 10,000 decisions of a logged softmax policy over 4 tasks and 12 models, by what happened in each
// cell. Propensities, targets and predictions are the same for all decisions of a cell.
struct Cell {
  int task, action;
  double propensity;
  int failed, solved;  // decisions of reward 0 and 1
  double target, model;
};
constexpr Cell kCells[] = {
    {0, 0, 0.06761266798520449, 22, 105, 0.37281432670951126, 0.9117647058823529},
    {0, 1, 0.09662271154097307, 16, 150, 0.4639749260532653, 0.8766233766233766},
    {0, 2, 0.048586890477585486, 24, 59, 0.028748353961400377, 0.7238095238095238},
    {0, 3, 0.023187398689811647, 18, 12, 0.00014621611852534054, 0.59375},
    {0, 4, 0.039123144995793335, 5, 59, 0.09725442785335296, 0.7543859649122807},
    {0, 5, 0.02053936547165077, 9, 27, 0.007268722195652254, 0.696969696969697},
    {0, 6, 0.07256563776852527, 64, 68, 0.00014621611852534054, 0.5575221238938053},
    {0, 7, 0.3371667018736268, 171, 413, 0.004014169642103286, 0.7177570093457943},
    {0, 8, 0.03740002434786469, 19, 40, 0.0013872599075861168, 0.6428571428571429},
    {0, 9, 0.032064493547250036, 13, 49, 0.023833222533757772, 0.7846153846153846},
    {0, 10, 0.12152617089719452, 79, 140, 0.00041007324540412026, 0.611353711790393},
    {0, 11, 0.10360479240451989, 113, 54, 2.0856609159114168e-06, 0.4057142857142857},
    {1, 0, 0.1368951847308529, 23, 350, 0.126532494021896, 0.961038961038961},
    {1, 1, 0.039494317689797255, 1, 106, 0.15586502777849162, 0.9272727272727272},
    {1, 2, 0.11646796682234885, 19, 333, 0.0952202712353356, 0.9352941176470588},
    {1, 3, 0.27785024808631215, 130, 679, 0.002967310781888913, 0.8262454434993924},
    {1, 4, 0.024038603144579195, 10, 67, 0.13393577626438283, 0.9166666666666666},
    {1, 5, 0.0696567456352208, 7, 176, 0.13393577626438283, 0.9635416666666666},
    {1, 6, 0.01232033527349933, 5, 27, 0.024325438328334243, 0.8285714285714286},
    {1, 7, 0.02566872106593072, 4, 66, 0.07730058867324015, 0.9222222222222223},
    {1, 8, 0.013231977183059867, 4, 33, 0.04633743863813045, 0.926829268292683},
    {1, 9, 0.09097721603846305, 13, 258, 0.13142109724815237, 0.9527272727272728},
    {1, 10, 0.026358285914684636, 9, 73, 0.070311319771478, 0.926829268292683},
    {1, 11, 0.1670403984152512, 115, 428, 0.001847460994286978, 0.7946611909650924},
    {2, 0, 0.12033322598540944, 89, 78, 0.29397599114071743, 0.5357142857142857},
    {2, 1, 0.0796662744533319, 60, 79, 0.3377123023064994, 0.4732142857142857},
    {2, 2, 0.004864927536387583, 4, 2, 0.1521232258836359, 0.5555555555555556},
    {2, 3, 0.05223391510712871, 68, 12, 1.0254642145642211e-05, 0.175},
    {2, 4, 0.09406277129571822, 75, 80, 0.1419312465909184, 0.5723270440251572},
    {2, 5, 0.11422089589888247, 122, 52, 0.0033553090116019155, 0.32620320855614976},
    {2, 6, 0.015894935794789455, 22, 4, 1.4504676770509619e-05, 0.19047619047619047},
    {2, 7, 0.056196784636349126, 57, 37, 0.006949704987176307, 0.36036036036036034},
    {2, 8, 0.030813120205061363, 32, 16, 0.001994578827417111, 0.41818181818181815},
    {2, 9, 0.03777164868107958, 23, 30, 0.06175440013429388, 0.40625},
    {2, 10, 0.35611076556670945, 426, 141, 0.00017609149658954845, 0.24429967426710097},
    {2, 11, 0.03783073483915267, 41, 4, 2.3903022340403963e-06, 0.046875},
    {3, 0, 0.05345511069121567, 36, 168, 0.06795393107684086, 0.8476190476190476},
    {3, 1, 0.16063522898105567, 103, 502, 0.09814804973146574, 0.8662420382165605},
    {3, 2, 0.02759260427715237, 12, 79, 0.15257457925931875, 0.875},
    {3, 3, 0.04860983883750723, 49, 142, 0.006274394900942174, 0.6684491978609626},
    {3, 4, 0.0634609824241665, 21, 236, 0.3375694165689694, 0.9153225806451613},
    {3, 5, 0.06000371183591027, 34, 203, 0.17936417328693352, 0.8940092165898618},
    {3, 6, 0.012778975781346132, 15, 39, 0.007057734509923533, 0.6585365853658537},
    {3, 7, 0.060900206869790904, 39, 144, 0.028119887050537525, 0.8177777777777778},
    {3, 8, 0.283852972381346, 197, 883, 0.028119887050537525, 0.8109161793372319},
    {3, 9, 0.008682371289352167, 3, 34, 0.011134033093000706, 0.6451612903225806},
    {3, 10, 0.1558863974916474, 93, 502, 0.08348878774662173, 0.8437001594896332},
    {3, 11, 0.06414159913950986, 92, 155, 0.00019512572490864408, 0.6388888888888888},
};
std::vector<LoggedDecision> LoggedSoftmax() {
  double model_target[4] = {0, 0, 0, 0};
  for (const Cell& c : kCells) model_target[c.task] += c.target * c.model;
  std::vector<LoggedDecision> log;
  for (const Cell& c : kCells) {
    for (int i = 0; i < c.failed + c.solved; ++i)
      log.push_back(
          {i < c.failed ? 0.0 : 1.0, c.propensity, c.target, c.model, model_target[c.task]});
  }
  return log;
}
// Expected values: Open Bandit Pipeline on the decisions of this table one by one, its
// InverseProbabilityWeighting, SelfNormalizedInverseProbabilityWeighting, DirectMethod,
// DoublyRobust, SelfNormalizedDoublyRobust, SwitchDoublyRobust and DoublyRobustWithShrinkage,
// lambda_ = 5 where one is taken.
TEST(OffPolicy, AgreesWithOpenBanditPipeline) {
  const auto log = LoggedSoftmax();
  ASSERT_EQ(log.size(), 10000u);
  const OffPolicyOptions o = {.clip = 5, .switch_at = 5, .shrink = 5};
  const auto value = [&](OffPolicy how) { return EvaluateOffPolicy(log, how, o)->value; };
  EXPECT_NEAR(value(OffPolicy::kIps), 0.8297748559353804, 1e-12);
  EXPECT_NEAR(value(OffPolicy::kClippedIps), 0.8035745007708212, 1e-12);
  EXPECT_NEAR(value(OffPolicy::kSnips), 0.8310266197602753, 1e-12);
  EXPECT_NEAR(value(OffPolicy::kDirect), 0.8365093375812778, 1e-12);
  EXPECT_NEAR(value(OffPolicy::kDr), 0.8304213576834907, 1e-12);
  EXPECT_NEAR(value(OffPolicy::kSndr), 0.8304121736103071, 1e-12);
  EXPECT_NEAR(value(OffPolicy::kSwitchDr), 0.8424791899590349, 1e-12);
  EXPECT_NEAR(value(OffPolicy::kDrOs), 0.8353608772855012, 1e-12);
}
// What the target earns over every outcome of these queries, known otherwise: 0.8351100583954111.
TEST(OffPolicy, IntervalsAndDiagnosticsOfTheSameLog) {
  const auto log = LoggedSoftmax();
  const double truth = 0.8351100583954111;
  const OffPolicyOptions o = {.clip = 5, .switch_at = 5, .shrink = 5};
  // Standard deviations of the means, by numpy from the formulas: 0.015158117105303126 (IPS),
  // 0.0074610130191685095 (DR), 0.007461644532820899 (SNDR, by its influence),
  // 0.002449267771836054 (DRos).
  const auto deviation = [&](OffPolicy how) {
    const auto e = *EvaluateOffPolicy(log, how, o);
    EXPECT_LE(e.low, truth) << OffPolicyName(how);
    EXPECT_GE(e.high, truth) << OffPolicyName(how);
    return (e.high - e.low) / 2 / 1.959963984540054;
  };
  EXPECT_NEAR(deviation(OffPolicy::kIps), 0.015158117105303126, 1e-12);
  EXPECT_NEAR(deviation(OffPolicy::kDr), 0.0074610130191685095, 1e-12);
  EXPECT_NEAR(deviation(OffPolicy::kSndr), 0.007461644532820899, 1e-12);
  EXPECT_NEAR(deviation(OffPolicy::kDrOs), 0.002449267771836054, 1e-12);

  const Overlap overlap = OverlapOf(log);
  EXPECT_TRUE(overlap.reliable) << overlap.reason;
  EXPECT_NEAR(overlap.effective_decisions, 2576.988485125701, 1e-9);
  EXPECT_NEAR(overlap.largest_weight, 31.269371382372924, 1e-12);
  EXPECT_NEAR(overlap.mean_weight, 0.9984937139254866, 1e-12);
  EXPECT_NEAR(overlap.top_share, 0.07117111049345536, 1e-12);
  EXPECT_NEAR(overlap.rarely_taken, 0.023506400617794104, 1e-12);
  EXPECT_NEAR(overlap.never_taken, 1 - 0.9984937139254866, 1e-12);
  EXPECT_EQ(MainEstimator(overlap), OffPolicy::kDr);
}
// Where decisions are many and weights small, resampling them says what the formula says.
TEST(OffPolicy, BootstrapAgreesWithTheNormalInterval) {
  const auto log = LoggedSoftmax();
  for (OffPolicy how : kOffPolicies) {
    const auto normal = *EvaluateOffPolicy(log, how);
    const auto drawn = *EvaluateOffPolicy(log, how, {.draws = 300});
    EXPECT_EQ(normal.value, drawn.value);
    const double width = normal.high - normal.low;
    EXPECT_NEAR(drawn.low, normal.low, 0.15 * width) << OffPolicyName(how);
    EXPECT_NEAR(drawn.high, normal.high, 0.15 * width) << OffPolicyName(how);
    const double gain = normal.gain.high - normal.gain.low;
    EXPECT_NEAR(drawn.gain.low, normal.gain.low, 0.15 * gain) << OffPolicyName(how);
    EXPECT_NEAR(drawn.gain.high, normal.gain.high, 0.15 * gain) << OffPolicyName(how);
  }
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
  const auto e = *EvaluateOffPolicy(log, OffPolicy::kSnips);
  EXPECT_FALSE(e.reliable);
  EXPECT_EQ(e.overlap.reason, "1.0 effective decisions, wanted 100");
  EXPECT_EQ(MainEstimator(e.overlap), OffPolicy::kDrOs);
  for (LoggedDecision& d : log) d.target = 0;
  EXPECT_EQ(OverlapOf(log).reason, "0.0 effective decisions, wanted 100");
  EXPECT_EQ(EvaluateOffPolicy(log, OffPolicy::kSnips)->value, 0);
}
// One reason each, in the order in which they are looked for.
TEST(OffPolicy, SaysWhyItIsNotReliable) {
  // A deterministic logging policy that the target follows in 3 of 5 decisions.
  std::vector<LoggedDecision> half(1000, {1, 1, 1, 0, 0});
  for (size_t i = 0; i < half.size(); ++i) half[i].target = i % 5 < 3;
  EXPECT_EQ(OverlapOf(half).reason, "40 % of what it would do was never done, allowed 25 %");
  EXPECT_NEAR(OverlapOf(half).never_taken, 0.4, 1e-12);
  // In 9 of 10: little is missing, and surely so.
  std::vector<LoggedDecision> most(1000, {1, 1, 1, 0, 0});
  for (size_t i = 0; i < most.size(); ++i) most[i].target = i % 10 != 0;
  EXPECT_THAT(OverlapOf(most).reason,
              testing::StartsWith("mean weight 0.9000 is 10.5 deviations from 1, allowed 4"));
  // One decision that was almost never made.
  std::vector<LoggedDecision> one(1000, {1, 0.95, 0.95, 0, 0});
  one.push_back({1, 0.015, 0.9, 0, 0});
  EXPECT_THAT(OverlapOf(one).reason,
              testing::StartsWith("one decision has 5.7 % of all weight, allowed 5 %"));
  // The logging policy itself.
  EXPECT_TRUE(OverlapOf(std::vector<LoggedDecision>(1000, {1, 1, 1, 0, 0})).reliable);
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
  EXPECT_THAT(error({1, 0.5, NAN, 0, 0}), testing::HasSubstr("target nan"));
  EXPECT_THAT(error({NAN, 0.5, 1, 0, 0}), testing::HasSubstr("reward nan"));
  EXPECT_THAT(error({1, 0.5, 1, NAN, 0}), testing::HasSubstr("decision 1 has reward 1, model nan"));
  EXPECT_THAT(error({1, 0.5, 1, 0, INFINITY}), testing::HasSubstr("model of the target inf"));
  EXPECT_FALSE(EvaluateOffPolicy({}, OffPolicy::kIps).ok());
  const std::vector<LoggedDecision> two(2, {1, 1, 1, 0, 0});
  for (const OffPolicyOptions& o :
       {OffPolicyOptions{.clip = NAN}, {.switch_at = 0}, {.shrink = -1}, {.draws = -1}})
    EXPECT_FALSE(EvaluateOffPolicy(two, OffPolicy::kIps, o).ok());
}
}  // namespace off_policy_test
SLUICE_END_NAMESPACE
