// What other policies would have earned, on simulated traffic where that is known.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/wait.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>

#include "sluice/routers/builtin.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/service/config.h"
#include "sluice/runtime/service/earlier_teams.h"
#include "sluice/runtime/service/evaluate.h"
#include "sluice/runtime/service/outcome_log.h"
#include "sluice/runtime/service/replay.h"
#include "sluice/runtime/store/ledger.h"
#include "sluice/tests/support/redis_server.h"
#include "sluice/tests/support/running_server.h"
#include "sluice/v1/config.pb.h"

SLUICE_BEGIN_NAMESPACE
namespace ope_test {
using testing::HasSubstr;
constexpr uint64_t kGraph = 0xabc;
constexpr int kTasks = 3;
constexpr int kAgents = 4;
// Mean quality of each task and agent: of each task another one is the best.
constexpr double kMean[kTasks][kAgents] = {
    {0.3, 0.8, 0.5, 0.4}, {0.7, 0.4, 0.6, 0.3}, {0.4, 0.5, 0.45, 0.75}};
constexpr double kCost[kAgents] = {0.001, 0.01, 0.002, 0.02};

v1::ServerConfig Config(int stages = 1) {
  v1::ServerConfig c;
  for (int t = 0; t < kTasks; ++t) c.add_task(absl::StrCat("task", t));
  for (int s = 0; s < stages; ++s) {
    v1::StageConfig& stage = *c.add_stage();
    for (int j = 0; j < kAgents; ++j) {
      v1::AgentConfig& agent = *stage.add_agent();
      agent.set_id(absl::StrCat("s", s, "a", j));
      agent.set_cost_usd(kCost[j]);
      agent.set_weight(j + 1);
    }
  }
  return c;
}

// A policy that learns as a server has it learn.
struct Learning {
  Learning(const std::string& spec, std::shared_ptr<const AgentGraph> graph)
      : router(*BuiltinRouters().agents.Create(spec)),
        plan(*router->MakePlan(std::move(graph))),
        ledger(*router, *plan) {}
  AgentDecision Decide(AgentRequest q, AgentTrace* trace = nullptr) {
    AgentDecision d;
    EXPECT_TRUE(router->Run(*plan, ledger.State(), q, d, trace).ok());
    return d;
  }
  void Learn(const OutcomeRecord& o) {
    std::vector<SumDelta> deltas;
    router->Observe(*plan, o.view(o.shares()), deltas);
    ledger.Add(o.decision.epoch, deltas);
  }
  std::unique_ptr<const AgentRouter> router;
  std::unique_ptr<const AgentRouter::Plan> plan;
  Ledger ledger;
};

struct Traffic {
  std::string logging = "epsilon_greedy:epsilon=0";
  double explore = 0.1;
  int64_t outcomes = 20000;
  uint64_t seed = 1;
  int stages = 1;
};
OutcomeRecord Outcome(const Traffic& t, Learning& logging, int64_t i) {
  const auto draw = [&](uint64_t unit) {
    return RandomUniform({t.seed, static_cast<uint64_t>(i), 21, unit, 0});
  };
  OutcomeRecord o;
  DecisionRecord& d = o.decision;
  d.id = static_cast<uint64_t>(i) + 1;
  d.graph = kGraph;
  d.epoch = static_cast<uint64_t>(i) / 64 + 1;
  d.unix_ms = 1700000000000 + i * 1000;
  d.intent.assign(kTasks, 0.0);
  const auto task = static_cast<size_t>(draw(0) * kTasks);
  d.intent[task] = 1;
  std::vector<Block> blocked(static_cast<size_t>(t.stages) * kAgents, Block::kNone);
  if (draw(1) < 0.1) {
    d.blocked = {2};
    blocked[2] = Block::kUnhealthy;
  }
  AgentRequest q;
  q.id = RandomBits({t.seed, d.id, 22, 0, 0}) >> 1;
  q.intent = d.intent;
  q.blocked = blocked;
  q.explore = t.explore;
  const AgentDecision decided = logging.Decide(q);
  d.path.assign(decided.path.begin(), decided.path.begin() + decided.stages);
  d.propensity = decided.propensity;
  const int agent = d.path.back() - (t.stages - 1) * kAgents;
  o.quality = draw(2) < kMean[task][agent] ? 1 : 0;
  o.accepted = o.quality > 0.5;
  o.cost_usd = kCost[agent];
  o.unix_ms = d.unix_ms + 500;
  return o;
}
void Append(Store& store, const std::vector<OutcomeRecord>& outcomes) {
  std::vector<StoredOutcome> batch;
  for (const OutcomeRecord& o : outcomes) batch.push_back({o.decision.id, SerializeOutcome(o)});
  ASSERT_TRUE(store.Append(batch).ok());
}
struct Served {
  std::unique_ptr<Store> store = MakeMemoryStore();
  std::vector<OutcomeRecord> outcomes;
};
Served Serve(const Traffic& t) {
  Served s;
  const v1::ServerConfig config = Config(t.stages);
  EXPECT_TRUE(s.store->SaveSnapshot(TeamKey(kGraph), {0, config.SerializeAsString()}).ok());
  Learning logging(t.logging, GraphOf(config));
  for (int64_t i = 0; i < t.outcomes; ++i) {
    s.outcomes.push_back(Outcome(t, logging, i));
    logging.Learn(s.outcomes.back());
  }
  Append(*s.store, s.outcomes);
  return s;
}
// What the policy would earn on average for these queries, each time with what it had learned from
// the outcomes before: sum of its probabilities and the means.
double TrueValue(const std::string& policy, const Served& s) {
  Learning learning(policy, GraphOf(Config()));
  double value = 0;
  for (const OutcomeRecord& o : s.outcomes) {
    std::vector<Block> blocked(kAgents, Block::kNone);
    for (int32_t a : o.decision.blocked) blocked[static_cast<size_t>(a)] = Block::kCaller;
    AgentRequest q;
    q.id = o.decision.id;
    q.intent = o.decision.intent;
    q.blocked = blocked;
    AgentTrace trace;
    learning.Decide(q, &trace);
    for (const AgentCandidate& c : trace) {
      for (int t = 0; t < kTasks; ++t) value += o.decision.intent[t] * c.p * kMean[t][c.agent];
    }
    learning.Learn(o);
  }
  return value / static_cast<double>(s.outcomes.size());
}

// The logging policy is the best single agent, so one that looks at the task is better and a random
// one worse.
TEST(Ope, IntervalsHoldTheTruth) {
  int held = 0;
  int all = 0;
  int reliable = 0;
  for (double explore : {0.02, 0.1}) {
    for (uint64_t seed = 1; seed <= 10; ++seed) {
      const Served s = Serve({.logging = "best_single", .explore = explore, .seed = seed});
      OpeOptions o;
      o.policies = {"epsilon_greedy:epsilon=0.05", "random"};
      const auto run = EvaluateStore(*s.store, o);
      ASSERT_TRUE(run.ok()) << run.status();
      EXPECT_EQ(run->counts.judged, 20000);
      double gain[2] = {0, 0};
      for (size_t i = 0; i < 2; ++i) {
        const double truth = TrueValue(o.policies[i], s);
        const std::vector<LoggedDecision>& log = run->policies[i].log;
        const auto e = *EvaluateOffPolicy(log, MainEstimator(OverlapOf(log)));
        held += e.low <= truth && truth <= e.high;
        reliable += e.reliable;
        ++all;
        gain[i] = e.gain.value;
        EXPECT_NEAR(e.value, truth, 0.06) << o.policies[i] << " explore " << explore;
      }
      EXPECT_GT(gain[0], 0);
      EXPECT_LT(gain[1], 0);
    }
  }
  RecordProperty("held", held);
  RecordProperty("reliable", reliable);
  EXPECT_EQ(all, 40);
  EXPECT_GE(held, 35);
  EXPECT_GE(reliable, 36);
}

TEST(Ope, WithoutExploringADeterministicLogSaysLittle) {
  const Served s = Serve({.logging = "best_single", .explore = 0, .outcomes = 5000});
  OpeOptions o;
  o.policies = {"epsilon_greedy:epsilon=0.05", "random", "best_single"};
  const auto run = EvaluateStore(*s.store, o);
  ASSERT_TRUE(run.ok()) << run.status();
  for (size_t i = 0; i < 2; ++i) {
    const Overlap overlap = OverlapOf(run->policies[i].log);
    EXPECT_FALSE(overlap.reliable);
    EXPECT_THAT(overlap.reason, HasSubstr("of what it would do was never done"));
    EXPECT_EQ(MainEstimator(overlap), OffPolicy::kDrOs);
  }
  EXPECT_TRUE(OverlapOf(run->policies[2].log).reliable);  // what was done
}

// Probabilities and predictions by their definition, with what was known before each outcome.
TEST(Ope, JudgesByWhatWasKnownBefore) {
  const std::string policy = "thompson";
  const Served s = Serve({.outcomes = 300});
  OpeOptions o;
  o.policies = {policy};
  o.cost_weight = 5;
  o.explore = 0.05;
  const auto run = EvaluateStore(*s.store, o);
  ASSERT_TRUE(run.ok()) << run.status();
  Learning learning(policy, GraphOf(Config()));
  double seen = 0;
  double total = 0;
  double count[kTasks][kAgents] = {};
  double sum[kTasks][kAgents] = {};
  for (size_t i = 0; i < s.outcomes.size(); ++i) {
    const OutcomeRecord& outcome = s.outcomes[i];
    const DecisionRecord& d = outcome.decision;
    std::vector<Block> blocked(kAgents, Block::kNone);
    for (int32_t a : d.blocked) blocked[static_cast<size_t>(a)] = Block::kCaller;
    AgentRequest q;
    q.id = d.id;
    q.intent = d.intent;
    q.blocked = blocked;
    q.explore = 0.05;
    q.follow = d.path;
    AgentTrace trace;
    const AgentDecision decided = learning.Decide(q, &trace);
    size_t task = 0;
    while (d.intent[task] == 0) ++task;
    const auto model = [&](int32_t a) {
      const double mean = seen > 0 ? total / seen : 0;
      return (sum[task][a] + 20 * mean) / (count[task][a] + 20);
    };
    double model_target = 0;
    for (const AgentCandidate& c : trace) model_target += c.p * model(c.agent);
    const double reward = outcome.quality - 5 * outcome.cost_usd;
    const LoggedDecision& got = run->policies[0].log[i];
    EXPECT_EQ(got.reward, reward);
    EXPECT_EQ(got.propensity, d.propensity);
    EXPECT_EQ(got.target, decided.propensity);
    EXPECT_NEAR(got.model, model(d.path[0]), 1e-12);
    EXPECT_NEAR(got.model_target, model_target, 1e-12);
    learning.Learn(outcome);
    seen += 1;
    total += reward;
    count[task][d.path[0]] += 1;
    sum[task][d.path[0]] += reward;
  }
}

// Several stages: the last agent decides here, and a path's probability is the product.
TEST(Ope, JudgesPathsOfSeveralStages) {
  int held = 0;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const Served s =
        Serve({.logging = "random", .explore = 0, .outcomes = 3000, .seed = seed, .stages = 3});
    OpeOptions o;
    o.policies = {"weighted"};  // shares 0.1 to 0.4
    const auto run = EvaluateStore(*s.store, o);
    ASSERT_TRUE(run.ok()) << run.status();
    const std::vector<LoggedDecision>& log = run->policies[0].log;
    double truth = 0;
    for (size_t i = 0; i < log.size(); ++i) {
      const DecisionRecord& d = s.outcomes[i].decision;
      double p = 1;
      for (int stage = 0; stage < 3; ++stage) {
        const int j = d.path[static_cast<size_t>(stage)] - stage * kAgents;
        const bool without = stage == 0 && !d.blocked.empty();  // the agent of weight 3
        p *= (j + 1) / (without ? 7.0 : 10.0);
      }
      ASSERT_NEAR(log[i].target, p, 1e-12);
      for (int t = 0; t < kTasks; ++t) {
        for (int j = 0; j < kAgents; ++j) truth += d.intent[t] * 0.1 * (j + 1) * kMean[t][j] / 3000;
      }
    }
    const auto e = *EvaluateOffPolicy(log, OffPolicy::kDr);
    EXPECT_TRUE(e.reliable) << e.overlap.reason;
    held += e.low <= truth && truth <= e.high;
  }
  EXPECT_GE(held, 8);
  RecordProperty("held", held);
}

// Real answers of 12 models to 4,540 queries: what a policy would have earned is known, for every
// agent's answer to every query is.
struct RealTraffic {
  OutcomeLog log;
  v1::ServerConfig config;
  std::vector<size_t> rows;  // of the log, one an outcome
  std::vector<OutcomeRecord> outcomes;
};
absl::StatusOr<RealTraffic> ServePoolA(const std::string& logging, double explore, int64_t n,
                                       uint64_t seed) {
  RealTraffic t;
  SLUICE_ASSIGN_OR_RETURN(t.log, LoadOutcomeLog(SLUICE_POOL_A));
  const auto graph = t.log.Graph(1);
  for (const std::string& task : graph->tasks) t.config.add_task(task);
  v1::StageConfig& stage = *t.config.add_stage();
  for (const Agent& a : graph->stages[0]) {
    v1::AgentConfig& agent = *stage.add_agent();
    agent.set_id(a.id);
    agent.set_cost_usd(a.cost_usd);
    agent.set_latency_s(a.latency_s);
    agent.mutable_ability()->Add(a.ability.begin(), a.ability.end());
  }
  Learning policy(logging, graph);
  for (int64_t i = 0; i < n; ++i) {
    t.rows.push_back(RandomBits({seed, static_cast<uint64_t>(i), 31, 0, 0}) % t.log.rows.size());
    const OutcomeLog::Row& row = t.log.rows[t.rows.back()];
    OutcomeRecord o;
    DecisionRecord& d = o.decision;
    d.id = RandomBits({seed, static_cast<uint64_t>(i), 32, 0, 0}) >> 1;
    d.graph = kGraph;
    d.epoch = static_cast<uint64_t>(i) / 16 + 1;
    d.unix_ms = 1764028800000 + i * 6000;
    d.intent.assign(t.log.tasks.size(), 0.0);
    d.intent[static_cast<size_t>(row.task)] = 1;
    AgentRequest q;
    q.id = d.id;
    q.intent = d.intent;
    q.explore = explore;
    const AgentDecision decided = policy.Decide(q);
    d.path = {decided.path[0]};
    d.propensity = decided.propensity;
    const auto agent = static_cast<size_t>(decided.path[0]);
    o.quality = row.quality[agent];
    o.accepted = o.quality >= 0.5;
    o.cost_usd = ZeroIfUnknown(row.cost_usd[agent]);
    o.latency_s = ZeroIfUnknown(row.latency_s[agent]);
    policy.Learn(o);
    t.outcomes.push_back(std::move(o));
  }
  return t;
}
double TrueValue(const std::string& spec, const RealTraffic& t) {
  Learning policy(spec, t.log.Graph(1));
  double value = 0;
  for (size_t i = 0; i < t.outcomes.size(); ++i) {
    const OutcomeRecord& o = t.outcomes[i];
    AgentRequest q;
    q.id = o.decision.id;
    q.intent = o.decision.intent;
    AgentTrace trace;
    policy.Decide(q, &trace);
    for (const AgentCandidate& c : trace)
      value += c.p * t.log.rows[t.rows[i]].quality[static_cast<size_t>(c.agent)];
    policy.Learn(o);
  }
  return value / static_cast<double>(t.outcomes.size());
}
TEST(OpeOnRealOutcomes, IntervalsHoldWhatEveryAnswerSays) {
  const std::vector<std::string> policies = {"random", "best_single", "thompson"};
  int held = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const auto t = ServePoolA(kServedPolicy, 0.1, 13620, seed);
    ASSERT_TRUE(t.ok()) << t.status();
    const std::string path = MakeTempDir() + "/state.sqlite";
    const auto store = OpenSqliteStore(path);
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE((*store)->SaveSnapshot(TeamKey(kGraph), {0, t->config.SerializeAsString()}).ok());
    Append(**store, t->outcomes);
    OpeOptions o;
    o.policies = policies;
    const auto run = EvaluateStore(**store, o);
    ASSERT_TRUE(run.ok()) << run.status();
    for (size_t i = 0; i < policies.size(); ++i) {
      const std::vector<LoggedDecision>& log = run->policies[i].log;
      const auto e = *EvaluateOffPolicy(log, MainEstimator(OverlapOf(log)));
      const double truth = TrueValue(policies[i], *t);
      held += e.low <= truth && truth <= e.high;
      EXPECT_TRUE(e.reliable) << policies[i] << ": " << e.overlap.reason;
      EXPECT_NEAR(e.value, truth, e.high - e.low) << policies[i];
    }
  }
  RecordProperty("held", held);
  EXPECT_GE(held, 13);  // of 15
}

TEST(Ope, CountsWhatItLeavesOut) {
  Served s = Serve({.outcomes = 400});
  std::vector<OutcomeRecord> more(s.outcomes.begin(), s.outcomes.begin() + 60);
  for (size_t i = 0; i < more.size(); ++i) more[i].decision.id += 1000;
  for (size_t i = 0; i < 10; ++i) more[i].decision.kept = true;
  for (size_t i = 10; i < 30; ++i) more[i].decision.id |= uint64_t{1} << 63;
  for (size_t i = 30; i < 35; ++i) more[i].graded = false;
  for (size_t i = 35; i < 38; ++i) more[i].decision.propensity = 0;
  for (size_t i = 38; i < 40; ++i) more[i].decision.path = {9};
  for (size_t i = 40; i < 59; ++i) more[i].decision.graph = kGraph + 1;
  Append(*s.store, more);
  OpeOptions o;
  o.policies = {"random"};
  const auto run = EvaluateStore(*s.store, o);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->counts.outcomes, 460);
  EXPECT_EQ(run->counts.kept, 10);
  EXPECT_EQ(run->counts.labelled, 20);
  EXPECT_EQ(run->counts.ungraded, 5);
  EXPECT_EQ(run->counts.unfit, 5);
  EXPECT_EQ(run->counts.other_graph, 19);
  EXPECT_EQ(run->counts.judged, 401);
  EXPECT_EQ(run->policies[0].log.size(), 401u);

  o.last = 100;
  int64_t exported = 0;
  o.each = [&](const AgentGraph&, const OutcomeRecord&, double) { ++exported; };
  const auto last = EvaluateStore(*s.store, o);
  EXPECT_EQ(last->counts.judged, 100);
  EXPECT_EQ(last->counts.outside, 301);
  EXPECT_EQ(exported, 100);
  // The same as the end of all: what was before is learned from.
  for (size_t i = 0; i < 100; ++i)
    EXPECT_EQ(last->policies[0].log[i].model, run->policies[0].log[301 + i].model);

  o.last = 0;
  o.since_ms = 1700000000000 + 100 * 1000;
  o.until_ms = 1700000000000 + 150 * 1000;
  EXPECT_EQ(EvaluateStore(*s.store, o)->counts.judged, 50);
}

TEST(Ope, TakesAPolicyByItsNameInTheConfiguration) {
  Served s;
  v1::ServerConfig config = Config();
  v1::PolicyConfig& p = *config.add_policy();
  p.set_name("mine");
  p.set_spec("weighted:seed=3");
  ASSERT_TRUE(s.store->SaveSnapshot(TeamKey(kGraph), {0, config.SerializeAsString()}).ok());
  Learning logging("random", GraphOf(config));
  for (int64_t i = 0; i < 50; ++i)
    s.outcomes.push_back(Outcome({.logging = "random", .explore = 0}, logging, i));
  Append(*s.store, s.outcomes);
  OpeOptions o;
  o.policies = {"mine", "weighted"};
  const auto run = EvaluateStore(*s.store, o);
  ASSERT_TRUE(run.ok()) << run.status();
  for (size_t i = 0; i < 50; ++i)
    EXPECT_EQ(run->policies[0].log[i].target, run->policies[1].log[i].target);
}

struct Ran {
  int status = 0;
  std::string text;
};
Ran RunOpe(const std::string& arguments) {
  Ran r;
  FILE* pipe = popen((std::string(SLUICE_BINARY) + " ope " + arguments + " 2>&1").c_str(), "r");
  char block[4096];
  while (const size_t n = fread(block, 1, sizeof block, pipe)) r.text.append(block, n);
  r.status = WEXITSTATUS(pclose(pipe));
  return r;
}
// A server's Redis says the same as any other store.
TEST(Ope, ReadsRedis) {
  const RedisServer redis;
  if (!redis.running()) GTEST_SKIP() << "no redis-server";
  const Served s = Serve({.outcomes = 300});
  const auto store = OpenRedisStore(redis.address(), "ope");
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_TRUE((*store)->SaveSnapshot(TeamKey(kGraph), {0, Config().SerializeAsString()}).ok());
  Append(**store, s.outcomes);
  OpeOptions o;
  o.policies = {"thompson"};
  const auto here = EvaluateStore(*s.store, o);
  const auto there = EvaluateStore(**store, o);
  ASSERT_TRUE(there.ok()) << there.status();
  ASSERT_EQ(there->policies[0].log.size(), 300u);
  for (size_t i = 0; i < 300; ++i)
    EXPECT_EQ(here->policies[0].log[i].target, there->policies[0].log[i].target);
  const Ran ran =
      RunOpe("--state redis:" + redis.address() + " --redis-prefix ope --policy random");
  EXPECT_EQ(ran.status, 0);
  EXPECT_THAT(ran.text, HasSubstr("300 of 300 outcomes"));
}
std::string ReadText(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}
TEST(OpeCommand, PrintsExportsAndReports) {
  const std::string folder = MakeTempDir();
  const std::string state = folder + "/state.sqlite";
  const Served s = Serve({.logging = "best_single", .outcomes = 2000});
  {
    const auto store = OpenSqliteStore(state);
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE((*store)->SaveSnapshot(TeamKey(kGraph), {0, Config().SerializeAsString()}).ok());
    Append(**store, s.outcomes);
  }
  const std::string from = "--state " + state + " --policy random ";
  const Ran ran = RunOpe(from + "--policy best_single --bootstrap 50 --export " + folder +
                         "/log.csv --report " + folder + "/report");
  EXPECT_EQ(ran.status, 0) << ran.text;
  EXPECT_THAT(ran.text, HasSubstr("2000 of 2000 outcomes, decided 2023-11-14 to 2023-11-14"));
  EXPECT_THAT(ran.text, HasSubstr("percentiles of 50 resamples"));
  EXPECT_THAT(ran.text, HasSubstr("(as logged)"));
  EXPECT_THAT(ran.text, HasSubstr("* random       DR "));
  const std::string csv = ReadText(folder + "/log.csv");
  EXPECT_THAT(csv, testing::StartsWith("timestamp,position,action,reward,pscore,context_0,"
                                       "context_1,context_2\n1700000000000,0,"));
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 2001);
  for (const char* file : {"/report.html", "/report.json", "/report.csv", "/report-2.csv"})
    EXPECT_GT(ReadText(folder + file).size(), 100u) << file;

  EXPECT_THAT(RunOpe(from + "--json --last 500").text,
              testing::AllOf(testing::StartsWith("{"), HasSubstr("500 of 2000 outcomes")));
  EXPECT_THAT(RunOpe(from + "--since 2023-11-14 --until 2023-11-14 --json").text,
              HasSubstr("2000 of 2000"));
  const auto refused = [&](const std::string& arguments, const std::string& text) {
    const Ran r = RunOpe(arguments);
    EXPECT_NE(r.status, 0) << arguments;
    EXPECT_THAT(r.text, HasSubstr(text)) << arguments;
  };
  refused("--state " + folder + "/none --policy random", folder + "/none");
  refused(from + "--since 2023-02-30", "'2023-02-30' is no day; wanted YYYY-MM-DD");
  refused(from + "--until 2023-11-13", "2000 outside what was asked for");
  refused(from + "--cost-weight nan", "'nan' was given; allowed: 0 to 1e+09");
  refused("--state " + state + " --policy randm", "policy 'randm': no method 'randm'");
  refused(from + "--report " + folder + "/none/report", folder + "/none/report");
}

TEST(Ope, RefusesByName) {
  const auto error = [](Store& store, const OpeOptions& o) {
    return std::string(EvaluateStore(store, o).status().message());
  };
  OpeOptions o;
  const auto empty = MakeMemoryStore();
  EXPECT_THAT(error(*empty, o), HasSubstr("no policy is given"));
  o.policies = {"random"};
  EXPECT_THAT(error(*empty, o), HasSubstr("the state holds no outcomes"));

  Served s = Serve({.outcomes = 10});
  const auto graphless = MakeMemoryStore();
  Append(*graphless, s.outcomes);
  EXPECT_THAT(error(*graphless, o), HasSubstr("the state has no team@abc"));
  o.policies = {"randm"};
  EXPECT_THAT(error(*s.store, o), HasSubstr("policy 'randm': "));
  o.policies = {"thompson:prior=-1"};
  EXPECT_THAT(error(*s.store, o), HasSubstr("policy 'thompson:prior=-1': "));
  o.policies = {"random"};
  for (const auto& spoil : std::vector<std::function<void(OpeOptions&)>>{
           [](OpeOptions& x) { x.cost_weight = NAN; }, [](OpeOptions& x) { x.explore = 2; },
           [](OpeOptions& x) { x.window = 0; }, [](OpeOptions& x) { x.model_prior = 0; }}) {
    OpeOptions bad = o;
    spoil(bad);
    EXPECT_EQ(EvaluateStore(*s.store, bad).status().code(), absl::StatusCode::kOutOfRange);
  }
  o.since_ms = 1800000000000;
  EXPECT_THAT(
      error(*s.store, o),
      HasSubstr("of 10 outcomes 0 can be judged by, wanted 2 or more: 0 are of other graphs, "
                "0 labelled, 0 kept by a session, 0 without a grade, 0 without a propensity "
                "or of another shape, 10 outside what was asked for"));
  ASSERT_TRUE(s.store->Append(std::vector<StoredOutcome>{{99, "x"}}).ok());
  EXPECT_THAT(error(*s.store, o), HasSubstr("outcome 11: "));
}
}  // namespace ope_test
SLUICE_END_NAMESPACE
