// On the bundled facts of 4,540 queries and 12 models: what the served policy has to reach.
#include "sluice/runtime/service/replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>

#include "sluice/policies/common/quantile.h"
#include "sluice/policies/experiment/off_policy.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/service/config.h"
#include "sluice/runtime/service/tune.h"
#include "sluice/tests/support/running_server.h"

SLUICE_BEGIN_NAMESPACE
namespace replay_test {
const OutcomeLog& PoolA() {
  static const OutcomeLog* log = [] {
    auto read = LoadOutcomeLog(SLUICE_POOL_A);
    EXPECT_TRUE(read.ok()) << read.status();
    return new OutcomeLog(*std::move(read));
  }();
  return *log;
}

TEST(Replay, CeilingsAreThePublishedOnes) {
  ASSERT_EQ(PoolA().rows.size(), 4540u);
  ASSERT_EQ(PoolA().agents.size(), 12u);
  const Ceilings c = CeilingsOf(PoolA(), 0, 0);
  EXPECT_NEAR(c.best_single, 0.8414, 5e-5);
  EXPECT_NEAR(c.task_best, 0.8597, 5e-5);
  EXPECT_NEAR(c.oracle, 0.9471, 5e-5);
}

class ReplayUtility : public testing::TestWithParam<double> {};
TEST_P(ReplayUtility, TheServedPolicyReachesTheBarsOverTwentySeeds) {
  for (bool predicted : {false, true}) {
    ReplayOptions o;
    o.cost_weight = GetParam();
    o.predicted_intent = predicted;
    const Ceilings c = CeilingsOf(PoolA(), o.cost_weight, 0);
    double mean = 0, random = 0;
    for (uint64_t seed = 101; seed <= 120; ++seed) {
      const auto run = Replay(PoolA(), kServedPolicy, o, seed);
      ASSERT_TRUE(run.ok()) << run.status();
      mean += run->LastThird() / 20;
      if (seed <= 105) random += Replay(PoolA(), "random", o, seed)->LastThird() / 5;
    }
    EXPECT_GE(mean, c.task_best - 0.01) << "intent " << (predicted ? "predicted" : "given");
    EXPECT_GE(mean, c.best_single - 0.005);
    EXPECT_GT(mean, random + 0.05);
  }
}
// The half of the queries on which --tune tunes nothing. Thompson sampling has the prior that did
// best on the other half (tests/bench/README.md, Agent routing).
TEST_P(ReplayUtility, TheServedPolicyReachesTheBarsOnHeldOutQueries) {
  const OutcomeLog held_out = *HalfOf(PoolA(), Half::kSecond);
  ReplayOptions o;
  o.cost_weight = GetParam();
  const Ceilings c = CeilingsOf(held_out, o.cost_weight, 0);
  const auto utility = [&](const std::string& policy, uint64_t seed) {
    const auto run = Replay(held_out, policy, o, seed);
    EXPECT_TRUE(run.ok()) << run.status();
    return run.ok() ? run->LastThird() : NAN;
  };
  const std::string thompson = o.cost_weight == 0 ? "thompson:prior=0.5" : "thompson:prior=3.9";
  std::vector<double> served, over_thompson, over_heuristic;
  for (uint64_t seed = 101; seed <= 120; ++seed) {
    served.push_back(utility(kServedPolicy, seed));
    if (seed > 105) continue;  // Thompson's quadrature takes most of this test's time
    over_thompson.push_back(served.back() - utility(thompson, seed));
    over_heuristic.push_back(served.back() -
                             utility(absl::StrCat(kServedPolicy, ",alpha=0"), seed));
  }
  const double mean = StudentInterval(served).value;
  EXPECT_GE(mean, c.best_single - 0.005);
  EXPECT_GE(mean, c.task_best - 0.01);
  EXPECT_GT(StudentInterval(over_thompson).value, 0);
  EXPECT_GT(StudentInterval(over_heuristic).low, 0.05) << "pheromone carries nothing";
}
INSTANTIATE_TEST_SUITE_P(CostWeights, ReplayUtility, testing::Values(0.0, 5.0, 20.0));

TEST(Replay, TheFirstDecisionOfTheServedPolicyIsOpen) {
  ReplayOptions o;
  o.decisions = 3;
  const auto run = Replay(PoolA(), kServedPolicy, o, 1);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_NEAR(run->propensity[0], 1.0 / 12, 0.02);
}

// It can find out that it is wrong: nobody is certain, nobody is out of the question.
TEST(Replay, TheExampleTeamsFirstDecisionIsOpen) {
  const auto settings = LoadSettings(SLUICE_TEAM);
  ASSERT_TRUE(settings.ok()) << settings.status();
  const PolicySet& set = *settings->policies;
  const PolicySet::Policy& policy = set.policies[set.Find(settings->config.active_policy())];
  std::vector<double> state(policy.plan->info().state);
  policy.router->InitialState(*policy.plan, absl::MakeSpan(state));
  AgentRequest q;
  const std::vector<double> intent = {1, 0, 0};
  q.intent = intent;
  AgentDecision d;
  AgentTrace trace;
  ASSERT_TRUE(policy.router->Run(*policy.plan, state, q, d, &trace).ok());
  ASSERT_EQ(trace.size(), 7u);
  for (const AgentCandidate& c : trace) {
    EXPECT_GT(c.p, 0.1) << "agent " << c.agent;
    EXPECT_LT(c.p, 0.6) << "agent " << c.agent;
  }
}

TEST(Tune, HalvesAreDisjointAndStandByTheIds) {
  const OutcomeLog first = *HalfOf(PoolA(), Half::kFirst), second = *HalfOf(PoolA(), Half::kSecond);
  EXPECT_EQ(first.rows.size() + second.rows.size(), PoolA().rows.size());
  EXPECT_NEAR(static_cast<double>(first.rows.size()), 2270, 140);
  std::vector<std::string> ids;
  for (const OutcomeLog* half : {&first, &second}) {
    for (const OutcomeLog::Row& r : half->rows) ids.push_back(r.id);
  }
  std::sort(ids.begin(), ids.end());
  EXPECT_EQ(std::unique(ids.begin(), ids.end()), ids.end());
  OutcomeLog part = PoolA();
  part.rows.resize(100);
  const OutcomeLog part_first = *HalfOf(part, Half::kFirst);
  for (const OutcomeLog::Row& r : part_first.rows) {
    EXPECT_TRUE(std::any_of(first.rows.begin(), first.rows.end(),
                            [&](const OutcomeLog::Row& other) { return other.id == r.id; }));
  }
}

TEST(Tune, FindsTheSettingThatEarnsMost) {
  TuneOptions o;
  o.replay.decisions = 900;
  o.trials = 6;
  o.seeds = 2;
  int64_t tried = 0;
  o.progress = [&](int64_t done) { tried = done; };
  const auto tuned = Tune(PoolA(), "epsilon_greedy:prior=10,epsilon=0.01..1", o);
  ASSERT_TRUE(tuned.ok()) << tuned.status();
  EXPECT_EQ(tried, 6);
  EXPECT_THAT(tuned->policy, testing::StartsWith("epsilon_greedy:prior=10,epsilon=0."));
  EXPECT_FALSE(HasRanges(tuned->policy));
  const auto most = Tune(PoolA(), "epsilon_greedy:prior=10,epsilon=1", o);
  ASSERT_TRUE(most.ok()) << most.status();
  EXPECT_EQ(most->policy, "epsilon_greedy:prior=10,epsilon=1");
  EXPECT_GT(tuned->utility, most->utility + 0.02);
}

TEST(Tune, NamesWrongRanges) {
  const auto error = [](const std::string& policy) {
    return std::string(Tune(PoolA(), policy, {}).status().message());
  };
  EXPECT_THAT(error("thompson:prior=9..2"),
              testing::HasSubstr("prior=9..2: wanted LOW..HIGH, two numbers with 0 <= LOW < HIGH"));
  EXPECT_THAT(error("thompson:prior=a..2"), testing::HasSubstr("prior=a..2: wanted LOW..HIGH"));
}

TEST(Replay, AbilitiesOfTheWarmUpNeedOne) {
  ReplayOptions o;
  o.decisions = 300;
  o.ability_from_warm_up = true;
  EXPECT_THAT(Replay(PoolA(), "amro_s", o, 1).status().message(), testing::HasSubstr("warm_up=0"));
  o.warm_up = 0.1;
  const auto known = Replay(PoolA(), "amro_s:alpha=0,beta=20", o, 1);
  o.ability_from_warm_up = false;
  const auto alike = Replay(PoolA(), "amro_s:alpha=0,beta=20", o, 1);
  ASSERT_TRUE(known.ok() && alike.ok());
  EXPECT_GT(known->LastThird(), alike->LastThird() + 0.03);
}

// Decisions of a softmax policy over each task's mean qualities, logged with their propensities;
// what would the best agent of each task (with a little of all others) have earned? The log of
// every outcome knows.
TEST(OffPolicyOnRealOutcomes, IntervalsHoldTheTruthInAThousandResamples) {
  const OutcomeLog& log = PoolA();
  const size_t tasks = log.tasks.size(), agents = log.agents.size();
  std::vector<std::vector<double>> mean(tasks, std::vector<double>(agents)),
      logging = mean, target = mean, model = mean;
  std::vector<double> rows(tasks), model_rows(tasks);
  for (size_t i = 0; i < log.rows.size(); ++i) {
    const auto t = static_cast<size_t>(log.rows[i].task);
    ++rows[t];
    model_rows[t] += i % 10 == 0;
    for (size_t a = 0; a < agents; ++a) {
      mean[t][a] += log.rows[i].quality[a];
      model[t][a] += i % 10 == 0 ? log.rows[i].quality[a] : 0;
    }
  }
  for (size_t t = 0; t < tasks; ++t) {
    double l = 0;
    size_t best = 0;
    for (size_t a = 0; a < agents; ++a) {
      mean[t][a] /= rows[t];
      model[t][a] /= model_rows[t];  // the model has seen a tenth of the queries
      l += logging[t][a] = 0.05 + std::exp(8 * mean[t][a] - 8);
      if (mean[t][a] > mean[t][best]) best = a;
    }
    for (size_t a = 0; a < agents; ++a) {
      logging[t][a] /= l;
      target[t][a] = 0.2 / static_cast<double>(agents) + (a == best ? 0.8 : 0);
    }
  }
  double truth = 0;
  for (const OutcomeLog::Row& r : log.rows) {
    for (size_t a = 0; a < agents; ++a)
      truth += target[r.task][a] * r.quality[a] / static_cast<double>(log.rows.size());
  }
  int snips = 0, dr = 0, reliable = 0;
  std::vector<LoggedDecision> sample(1500);
  for (uint64_t run = 0; run < 1000; ++run) {
    for (size_t i = 0; i < sample.size(); ++i) {
      const OutcomeLog::Row& r = log.rows[RandomBits({11, run, i, 0, 0}) % log.rows.size()];
      const auto t = static_cast<size_t>(r.task);
      size_t a = 0;
      for (double u = RandomUniform({12, run, i, 0, 0}) - logging[t][0]; u >= 0 && a + 1 < agents;
           u -= logging[t][a])
        ++a;
      double model_target = 0;
      for (size_t k = 0; k < agents; ++k) model_target += target[t][k] * model[t][k];
      sample[i] = {r.quality[a], logging[t][a], target[t][a], model[t][a], model_target};
    }
    const auto s = *EvaluateOffPolicy(sample, OffPolicy::kSnips),
               d = *EvaluateOffPolicy(sample, OffPolicy::kDr);
    snips += s.low <= truth && truth <= s.high;
    dr += d.low <= truth && truth <= d.high;
    reliable += s.reliable;
  }
  EXPECT_GE(snips, 930);
  EXPECT_GE(dr, 930);
  EXPECT_GE(reliable, 990);
}

TEST(Replay, SameSeedSameRun) {
  ReplayOptions o;
  o.decisions = 1000;
  o.warm_up = 0.1;
  for (const char* policy : {kServedPolicy, "thompson", "knn", "lin_ucb"}) {
    const auto a = Replay(PoolA(), policy, o, 3), b = Replay(PoolA(), policy, o, 3);
    ASSERT_TRUE(a.ok()) << a.status();
    EXPECT_EQ(a->utility, b->utility);
  }
}

TEST(Replay, AfterwardsEveryQueryIsAskedOnceAndNothingIsLearned) {
  // The first agent answers all but a few queries, the second only those.
  OutcomeLog log;
  log.tasks = {"t"};
  log.agents = {"mostly", "seldom"};
  for (int i = 0; i < 90; ++i) {
    OutcomeLog::Row r;
    r.id = std::to_string(i);
    r.quality = i % 9 == 0 ? std::vector<double>{0, 1} : std::vector<double>{1, 0};
    r.cost_usd = r.latency_s = {0, 0};
    log.rows.push_back(std::move(r));
  }
  ReplayOptions o;
  o.decisions = 900;
  EXPECT_TRUE(std::isnan(Replay(log, "round_robin", o, 1)->afterwards));
  o.ask_afterwards = true;
  // Whatever the order: a policy that is sure has the agent's mean to the bit, one that takes turns
  // a mean of both agents. The last third, of other queries, has neither.
  EXPECT_DOUBLE_EQ(Replay(log, "thompson", o, 1)->afterwards, 80.0 / 90);
  o.decisions = 100;
  EXPECT_NE(Replay(log, "best_single", o, 1)->LastThird(), 80.0 / 90);
  EXPECT_DOUBLE_EQ(Replay(log, "best_single", o, 1)->afterwards, 80.0 / 90);
  EXPECT_NEAR(Replay(log, "round_robin", o, 1)->afterwards, 0.5, 0.15);
  // Asking changes nothing of what was decided.
  ReplayOptions unasked = o;
  unasked.ask_afterwards = false;
  EXPECT_EQ(Replay(log, "thompson", o, 3)->agent, Replay(log, "thompson", unasked, 3)->agent);
}
TEST(Replay, BadLogsAreNamed) {
  const std::string folder = MakeTempDir();
  auto error = [&](const std::string& text) {
    const std::string path = folder + "/log.csv";
    gzFile f = gzopen(path.c_str(), "wT");  // plain text
    gzwrite(f, text.data(), static_cast<unsigned>(text.size()));
    gzclose(f);
    return std::string(LoadOutcomeLog(path).status().message());
  };
  using testing::HasSubstr;
  EXPECT_THAT(error("id,task,price:a\n"), HasSubstr("column 'price:a'; known: id, task"));
  EXPECT_THAT(error("id,task\n1,a\n"), HasSubstr("no column quality:AGENT"));
  EXPECT_THAT(error("id,task,quality:a\n"), HasSubstr("no rows"));
  EXPECT_THAT(error("id,task,quality:a\nx,t,1\ny,t\n"),
              HasSubstr("log.csv: line 3: 2 cells, the header has 3"));
  EXPECT_THAT(error("id,task,quality:a\nx,t,nan\n"),
              HasSubstr("line 2: column 'quality:a' is 'nan'"));
  EXPECT_THAT(LoadOutcomeLog("/none.csv").status().message(), HasSubstr("cannot open /none.csv"));
  const std::string truncated = folder + "/cut.csv.gz";
  FILE* from = fopen(SLUICE_POOL_A, "rb");
  std::string bytes(20000, '\0');
  ASSERT_EQ(fread(bytes.data(), 1, bytes.size(), from), bytes.size());
  fclose(from);
  FILE* to = fopen(truncated.c_str(), "wb");
  fwrite(bytes.data(), 1, bytes.size(), to);
  fclose(to);
  EXPECT_FALSE(LoadOutcomeLog(truncated).ok());
}
// Three agents, two of them alike: sessions that keep theirs move less and lose no more than the
// price.
TEST(ReplayAffinity, MovesLessAndLosesLittle) {
  std::string csv = "id,task,quality:a,quality:b,quality:c\n";
  for (int i = 0; i < 400; ++i) {
    const auto draw = [&](uint64_t agent, int of_ten) {
      const uint64_t bits = RandomBits({5, static_cast<uint64_t>(i), agent, 0, 0});
      return static_cast<int>(bits % 10) < of_ten ? ",1" : ",0";
    };
    absl::StrAppend(&csv, i, i % 2 == 0 ? ",x" : ",y", draw(1, 8), draw(2, 8),
                    draw(3, i % 2 == 0 ? 8 : 2), "\n");
  }
  const auto log = ParseOutcomeLog(csv);
  ASSERT_TRUE(log.ok()) << log.status();
  ReplayOptions o;
  o.decisions = 4000;
  o.session = 10;
  const auto alone = Replay(*log, "thompson", o, 1);
  o.affinity_price = 0.1;
  const auto kept = Replay(*log, "thompson", o, 1);
  ASSERT_TRUE(alone.ok() && kept.ok());
  EXPECT_GT(alone->moved, 0.3);
  EXPECT_LT(kept->moved, 0.5 * alone->moved);
  EXPECT_GT(kept->LastThird(), alone->LastThird() - 0.1);
  o.affinity_price = 0;  // whatever is better is moved to
  EXPECT_GT(Replay(*log, "thompson", o, 1)->moved, kept->moved);
}
}  // namespace replay_test
SLUICE_END_NAMESPACE
