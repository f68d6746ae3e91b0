// What the book of an experiment makes of outcomes, without a server.
#include "sluice/runtime/service/experiment.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace experiment_test {
v1::ExperimentConfig Config(const std::string& name, const std::vector<double>& weights) {
  v1::ExperimentConfig c;
  c.set_name(name);
  for (size_t i = 0; i < weights.size(); ++i) {
    v1::ArmConfig& arm = *c.add_arm();
    arm.set_policy(absl::StrCat("arm ", i));
    arm.set_weight(weights[i]);
  }
  return c;
}

// Units that differ for ever, in a world where one arm is better by a fixed gain.
struct World {
  ExperimentBook book;
  v1::ExperimentConfig config;
  uint64_t now = 0;

  void Adopt(const v1::ExperimentConfig& c) {
    config = c;
    book.Adopt(c);
  }
  // An outcome of every unit in [from, to).
  void Live(int from, int to, const std::vector<double>& gain) {
    Experiment serving;
    serving.Adopt(config);
    for (int unit = from; unit < to; ++unit) {
      const std::string name = absl::StrCat("unit ", unit);
      OutcomeRecord o;
      o.decision.unit = HashText(name);
      const double own = RandomUniform({1, 0, 0, 0, static_cast<uint64_t>(unit)});
      const double noise = RandomUniform({2, now++, 0, 0, static_cast<uint64_t>(unit)});
      o.quality = 0.2 + 0.4 * own + 0.1 * noise;
      if (serving.running()) {
        const Experiment::Assigned at = serving.Assign(name, {});
        o.decision.experiment = at.counts ? serving.id() : 0;
        o.decision.arm = static_cast<uint8_t>(at.arm);
        o.quality += gain[static_cast<size_t>(at.arm)];
      }
      book.Learn(o);
    }
  }
  v1::ExperimentResponse Report() const {
    v1::ExperimentResponse r;
    book.Report(r);
    return r;
  }
};

TEST(ExperimentBook, AReloadWithOtherWeightsDoesNotBiasAnything) {
  const std::vector<double> gain = {0, 0, 0.10};
  World w;
  w.Adopt({});
  for (int day = 0; day < 3; ++day) w.Live(0, 3000, gain);
  w.Adopt(Config("spring", {1, 1, 1}));
  for (int day = 0; day < 5; ++day) w.Live(0, 3000, gain);
  {
    const v1::ExperimentResponse r = w.Report();
    EXPECT_NEAR(r.arms(2).metrics(v1::QUALITY).gain(), 0.10, 0.02);
    EXPECT_LT(r.arms(2).metrics(v1::QUALITY).variance_kept(), 0.5);
    EXPECT_GT(r.arms(1).p(), 0.01);
  }

  w.Adopt(Config("spring", {1, 1.01, 1}));
  for (int day = 0; day < 5; ++day) w.Live(0, 3000, gain);
  EXPECT_EQ(w.Report().arms(0).units() + w.Report().arms(1).units() + w.Report().arms(2).units(),
            0u)
      << "units of the old weights are not counted twice";
  for (int day = 0; day < 5; ++day) w.Live(3000, 6000, gain);
  const v1::ExperimentResponse r = w.Report();
  EXPECT_NEAR(r.arms(2).metrics(v1::QUALITY).gain(), 0.10, 0.02);
  EXPECT_LT(std::abs(r.arms(1).metrics(v1::QUALITY).gain()),
            r.arms(1).metrics(v1::QUALITY).half_interval());
}

TEST(ExperimentBook, AnAddedArmThatIsTheSameReadsTheSame) {
  const std::vector<double> gain = {0, 0.10, 0};
  World w;
  w.Adopt(Config("spring", {1, 1}));
  for (int day = 0; day < 5; ++day) w.Live(0, 3000, gain);
  // With a name of its own, units are split anew and counted, and their days in the old arms, one
  // of which was better, are nobody's past.
  v1::ExperimentConfig added = Config("summer", {1, 1, 1});
  v1::GuardrailConfig& guard = *added.add_guardrail();
  guard.set_metric(v1::QUALITY);
  w.Adopt(added);
  for (int day = 0; day < 5; ++day) w.Live(0, 3000, gain);
  const v1::ExperimentResponse r = w.Report();
  EXPECT_NEAR(r.arms(1).metrics(v1::QUALITY).gain(), 0.10, 0.02);
  EXPECT_GT(r.arms(2).p(), 0.001);
  EXPECT_EQ(r.arms(2).stopped(), "");
  EXPECT_GT(r.sample_ratio_p(), 0.001);
}

TEST(ExperimentBook, WhatComesLateOfAnOldArmIsNoPast) {
  World w;
  w.Adopt(Config("spring", {1, 1}));
  OutcomeRecord late;
  late.decision.unit = HashText("unit 1");
  late.decision.experiment = ExperimentId(w.config);
  late.decision.arm = 1;
  late.quality = 1;
  w.Adopt(Config("summer", {1, 1}));
  for (int i = 0; i < 50; ++i) w.book.Learn(late);
  World fresh;
  fresh.Adopt(Config("summer", {1, 1}));
  w.Live(0, 10, {0, 0});
  fresh.Live(0, 10, {0, 0});
  EXPECT_EQ(w.Report().SerializeAsString(), fresh.Report().SerializeAsString());
}

TEST(ExperimentBook, KeepsWhoIsSpentOverARestart) {
  World w;
  w.Adopt(Config("spring", {1, 1}));
  w.Live(0, 100, {0, 0});
  w.Adopt(Config("spring", {1, 2}));
  ExperimentBook again;
  ASSERT_TRUE(again.Parse(w.book.Serialize()).ok());
  w.book = again;
  w.book.Adopt(w.config);
  w.Live(0, 100, {0, 0});
  EXPECT_EQ(w.Report().arms(0).units() + w.Report().arms(1).units(), 0u);
}

TEST(Experiment, OnlyANewNameSplitsAnew) {
  const v1::ExperimentConfig was = Config("spring", {1, 1});
  EXPECT_FALSE(Reweights(was, was));
  EXPECT_TRUE(Reweights(was, Config("spring", {1, 1.01})));
  EXPECT_TRUE(Reweights(was, Config("spring", {1, 1, 1})));
  EXPECT_FALSE(Reweights(was, Config("summer", {1, 2})));
  EXPECT_FALSE(Reweights({}, was));
  EXPECT_FALSE(Reweights(was, {}));
  v1::ExperimentConfig more = was;
  more.set_exposure(0.5);
  EXPECT_FALSE(Reweights(was, more)) << "exposure keeps who took part";
}
}  // namespace experiment_test
SLUICE_END_NAMESPACE
