// What every built-in agent router must do, whatever its method, and the same again out of a
// plug-in.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/tests/support/agent_fixture.h"
#include "sluice/tests/support/counting_allocator.h"
#include "sluice/tests/support/plugin_registry.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int kAgents = 7;
const RandomWeights& Weights() {
  static const auto* w = new RandomWeights({{"rows", 30}, {"width", 6}, {"agents", kAgents}});
  return *w;
}
const std::string kPlugin = "plugin_";
class AgentRouters : public testing::TestWithParam<std::string> {
 protected:
  bool OutOfPlugin() const { return GetParam().rfind(kPlugin, 0) == 0; }
  std::string Method() const {
    return OutOfPlugin() ? GetParam().substr(kPlugin.size()) : GetParam();
  }
  const FactoryMap<AgentRouter>& Routers() const {
    return OutOfPlugin() ? PluginRouters().agents : BuiltinRouters().agents;
  }
  AgentUnderTest Another() const {
    return {Method(), MakeGraph(3, {3, 4}), 8, &Weights(), Routers()};
  }
  AgentRouters() : a_(Another()) { a_.features = {1, 0, 2, -1, 0.5f, 0}; }
  void LearnSome(AgentUnderTest& a, uint64_t from, uint64_t to) {
    for (uint64_t i = from; i < to; ++i) {
      auto draw = [&](uint64_t unit) { return RandomUniform({4, i, 0, unit, 0}); };
      const double w = draw(0);
      a.Learn({w, 1 - w, 0}, {static_cast<int>(draw(1) * 3), 3 + static_cast<int>(draw(2) * 4)},
              draw(3), draw(4) < 0.6, 0.01 * draw(5), draw(6), 0.1, static_cast<int64_t>(i / 10));
    }
  }
  AgentUnderTest a_;
};

TEST_P(AgentRouters, DecidesAPathWithItsProbability) {
  LearnSome(a_, 0, 100);
  for (uint64_t id = 0; id < 100; ++id) {
    AgentTrace trace;
    const AgentDecision d = a_.Route(id, {0.2, 0.3, 0.5}, &trace);
    ASSERT_EQ(d.stages, 2);
    ASSERT_EQ(trace.size(), static_cast<size_t>(kAgents));
    double sum[2] = {0, 0}, product = 1;
    for (const AgentCandidate& c : trace) {
      ASSERT_TRUE(std::isfinite(c.p) && c.p >= 0);
      sum[c.stage] += c.p;
      EXPECT_EQ(c.chosen, d.path[c.stage] == c.agent);
      if (c.chosen) product *= c.p;
    }
    EXPECT_NEAR(sum[0], 1, 1e-5);
    EXPECT_NEAR(sum[1], 1, 1e-5);
    if (Method() != "round_robin") {
      EXPECT_NEAR(d.propensity, product, 1e-5);
    }
    EXPECT_GT(d.propensity, 0);
  }
}

TEST_P(AgentRouters, SameIdSameDecision) {
  LearnSome(a_, 0, 50);
  AgentUnderTest b = Another();
  b.features = a_.features;
  LearnSome(b, 0, 50);
  for (uint64_t id = 0; id < 50; ++id)
    EXPECT_EQ(a_.Route(id, {0, 1, 0}).path, b.Route(id, {0, 1, 0}).path);
}

TEST_P(AgentRouters, NeverTakesABlockedAgent) {
  LearnSome(a_, 0, 100);
  for (uint64_t id = 0; id < 200; ++id) {
    std::vector<Block> blocked(kAgents, Block::kNone);
    for (uint64_t j = 0; j < kAgents; ++j) {
      if (j != 1 && j != 5 && RandomUniform({1, id, j, 0, 0}) < 0.6) blocked[j] = Block::kUnhealthy;
    }
    const AgentDecision d = a_.Route(id, {0.5, 0.5, 0}, nullptr, blocked);
    for (int s = 0; s < 2; ++s) EXPECT_EQ(blocked[d.path[s]], Block::kNone);
  }
}

TEST_P(AgentRouters, SaysWhenNobodyIsLeft) {
  std::vector<Block> blocked(kAgents, Block::kNone);
  for (int j = 3; j < kAgents; ++j) blocked[j] = Block::kUnhealthy;
  const std::vector<double> intent = {1, 0, 0};
  AgentRequest q;
  q.intent = intent;
  q.blocked = blocked;
  q.features = a_.features;
  AgentDecision d;
  const absl::Status status = a_.router().Run(a_.plan(), a_.state(), q, d, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), testing::HasSubstr("stage 1: none of its 4 agents"));
}

TEST_P(AgentRouters, RefusesABadIntent) {
  for (const std::vector<double>& intent :
       {std::vector<double>{1, 0}, {0.5, 0.4, 0}, {2, -1, 0}, {NAN, 1, 0}, {INFINITY, 0, 0}, {}}) {
    AgentRequest q;
    q.intent = intent;
    q.features = a_.features;
    AgentDecision d;
    EXPECT_EQ(a_.router().Run(a_.plan(), a_.state(), q, d, nullptr).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_P(AgentRouters, DoesNotAllocateToDecide) {
  LearnSome(a_, 0, 30);
  const std::vector<double> intent = {0.2, 0.3, 0.5};
  AgentRequest q;
  q.intent = intent;
  q.features = a_.features;
  AgentDecision d;
  const absl::Span<const double> state = a_.state();
  const int64_t before = AllocationCount();
  for (q.id = 0; q.id < 20; ++q.id)
    ASSERT_TRUE(a_.router().Run(a_.plan(), state, q, d, nullptr).ok());
  EXPECT_EQ(AllocationCount(), before);
}

TEST_P(AgentRouters, FoldingNothingChangesNothing) {
  LearnSome(a_, 0, 100);
  std::vector<double> state(a_.state().begin(), a_.state().end());
  const std::vector<double> before = state;
  const std::vector<int64_t> none(a_.plan().info().sums);
  a_.router().Fold(a_.plan(), none, absl::MakeSpan(state));
  EXPECT_EQ(state, before);
}

TEST_P(AgentRouters, OrderAndSnapshotsDoNotChangeABit) {
  AgentUnderTest back = Another(), stored = Another();
  back.features = stored.features = a_.features;
  LearnSome(a_, 0, 240);
  for (uint64_t block = 0; block < 4; ++block) {  // within the window of 8 epochs of 10
    for (uint64_t i = 60; i-- > 0;) LearnSome(back, block * 60 + i, block * 60 + i + 1);
  }
  LearnSome(stored, 0, 130);
  const std::string text = stored.ledger().Serialize();
  AgentUnderTest restored = Another();
  restored.features = a_.features;
  ASSERT_TRUE(restored.ledger().Parse(text).ok());
  LearnSome(restored, 130, 240);
  const std::vector<double> want(a_.state().begin(), a_.state().end());
  EXPECT_EQ(want, std::vector<double>(back.state().begin(), back.state().end()));
  EXPECT_EQ(want, std::vector<double>(restored.state().begin(), restored.state().end()));
  for (size_t cut : {size_t{0}, size_t{7}, size_t{55}, text.size() - 1}) {
    EXPECT_FALSE(restored.ledger().Parse(absl::string_view(text).substr(0, cut)).ok());
  }
}

TEST_P(AgentRouters, TheSameBitsInsideAndOutOfAPlugin) {
  if (!OutOfPlugin()) return;
  AgentUnderTest inside(Method(), MakeGraph(3, {3, 4}), 8, &Weights());
  inside.features = a_.features;
  LearnSome(a_, 0, 200);
  LearnSome(inside, 0, 200);
  EXPECT_EQ(std::vector<double>(a_.state().begin(), a_.state().end()),
            std::vector<double>(inside.state().begin(), inside.state().end()));
  for (uint64_t id = 0; id < 100; ++id) {
    AgentTrace out, in;
    const AgentDecision a = a_.Route(id, {0.1, 0.2, 0.7}, &out),
                        b = inside.Route(id, {0.1, 0.2, 0.7}, &in);
    EXPECT_EQ(a.path, b.path);
    EXPECT_EQ(a.propensity, b.propensity);
    ASSERT_EQ(out.size(), in.size());
    for (size_t i = 0; i < in.size(); ++i) EXPECT_EQ(out[i].p, in[i].p);
  }
}

// ---- The share that is spread evenly, and the probability of a given path.

struct Asked {
  absl::Status status;
  AgentDecision decision;
  AgentTrace trace;
};
Asked Ask(AgentUnderTest& a, AgentRequest q) {
  Asked r;
  q.features = a.features;
  r.status = a.router().Run(a.plan(), a.state(), q, r.decision, &r.trace);
  return r;
}
const std::vector<double> kIntent = {0.2, 0.3, 0.5};
const std::vector<Block> kSomeBlocked = {Block::kNone,     Block::kCaller, Block::kNone,
                                         Block::kNone,     Block::kNone,   Block::kNone,
                                         Block::kUnhealthy};
int Open(const AgentTrace& trace, int stage) {
  int n = 0;
  for (const AgentCandidate& c : trace) n += c.stage == stage && c.block == Block::kNone;
  return n;
}

TEST_P(AgentRouters, SpreadsWhatItExploresEvenlyOverOpenAgents) {
  LearnSome(a_, 0, 100);
  for (double explore : {0.02, 0.3, 1.0}) {
    for (uint64_t id = 0; id < 60; ++id) {
      AgentRequest q;
      q.id = id;
      q.intent = kIntent;
      if (id % 2 == 1) q.blocked = kSomeBlocked;
      q.explore = explore;
      const Asked got = Ask(a_, q);
      ASSERT_TRUE(got.status.ok()) << got.status;
      q.explore = 0;
      q.follow = absl::MakeConstSpan(got.decision.path).first(2);
      const Asked own = Ask(a_, q);
      ASSERT_TRUE(own.status.ok()) << own.status;
      ASSERT_EQ(got.trace.size(), own.trace.size());
      double sum[2] = {0, 0};
      double least = 1;
      for (size_t i = 0; i < got.trace.size(); ++i) {
        const AgentCandidate& c = got.trace[i];
        const double even = c.block == Block::kNone ? 1.0 / Open(got.trace, c.stage) : 0;
        EXPECT_NEAR(c.p, (1 - explore) * own.trace[i].p + explore * even, 1e-6);
        EXPECT_GE(c.p, explore * even - 1e-7);
        sum[c.stage] += c.p;
        if (c.chosen) least *= explore * even;
      }
      EXPECT_NEAR(sum[0], 1, 1e-6);
      EXPECT_NEAR(sum[1], 1, 1e-6);
      EXPECT_GE(got.decision.propensity, least);
    }
  }
}

// Of the graph of 3 and 4 agents: every path.
std::vector<std::vector<int32_t>> AllPaths() {
  std::vector<std::vector<int32_t>> paths;
  for (int32_t i = 0; i < 3; ++i) {
    for (int32_t j = 3; j < kAgents; ++j) paths.push_back({i, j});
  }
  return paths;
}
TEST_P(AgentRouters, SaysTheProbabilityOfAGivenPath) {
  LearnSome(a_, 0, 100);
  for (double explore : {0.0, 0.1}) {
    for (bool blocked : {false, true}) {
      AgentRequest q;
      q.id = 5;
      q.intent = kIntent;
      q.explore = explore;
      if (blocked) q.blocked = kSomeBlocked;
      const Asked drawn = Ask(a_, q);
      double sum = 0;
      for (const std::vector<int32_t>& path : AllPaths()) {
        q.follow = path;
        const Asked followed = Ask(a_, q);
        ASSERT_TRUE(followed.status.ok()) << followed.status;
        EXPECT_EQ(followed.decision.path[0], path[0]);
        EXPECT_EQ(followed.decision.path[1], path[1]);
        const double p = followed.decision.propensity;
        sum += p;
        if (blocked && (path[0] == 1 || path[1] == 6)) {
          EXPECT_EQ(p, 0);
        }
        const bool same = drawn.decision.path[0] == path[0] && drawn.decision.path[1] == path[1];
        if (same) {
          EXPECT_EQ(p, drawn.decision.propensity);
        }
      }
      EXPECT_NEAR(sum, 1, 1e-9);
    }
  }
}

TEST_P(AgentRouters, DrawsPathsAsOftenAsItSays) {
  LearnSome(a_, 0, 100);
  constexpr int kDraws = 4000;
  AgentRequest q;
  q.intent = kIntent;
  q.explore = 0.3;
  std::map<std::vector<int32_t>, int> drawn;
  for (q.id = 0; q.id < kDraws; ++q.id) {
    const AgentDecision d = Ask(a_, q).decision;
    ++drawn[{d.path[0], d.path[1]}];
  }
  for (const std::vector<int32_t>& path : AllPaths()) {
    q.follow = path;
    const double p = Ask(a_, q).decision.propensity;
    EXPECT_NEAR(static_cast<double>(drawn[path]) / kDraws, p, 4.5 * std::sqrt(p * (1 - p) / kDraws))
        << path[0] << " " << path[1];
  }
}

TEST_P(AgentRouters, RefusesABadShareAndABadPath) {
  AgentRequest q;
  q.intent = kIntent;
  for (double explore : std::vector<double>{NAN, -0.1, 1.1, INFINITY}) {
    q.explore = explore;
    const absl::Status status = Ask(a_, q).status;
    EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange) << status;
    EXPECT_THAT(status.message(), testing::HasSubstr("is outside [0, 1]"));
  }
  q.explore = 0;
  for (const std::vector<int32_t>& path :
       {std::vector<int32_t>{0}, {0, 3, 4}, {3, 3}, {0, 2}, {0, 7}, {-1, 3}}) {
    q.follow = path;
    const absl::Status status = Ask(a_, q).status;
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.message(), testing::HasSubstr("follow"));
  }
}

// ---- Large teams.

void CheckLarge(AgentUnderTest& a, const AgentGraph& g) {
  const auto tasks = static_cast<size_t>(g.num_tasks());
  const auto first = static_cast<int32_t>(g.stages[0].size());
  for (uint64_t i = 0; i < 20; ++i) {
    auto draw = [&](uint64_t unit) { return RandomUniform({14, i, 0, unit, 0}); };
    std::vector<double> intent(tasks);
    intent[static_cast<size_t>(draw(0) * static_cast<double>(tasks))] = 0.5;
    intent[i % tasks] += 0.5;
    a.Learn(intent, {static_cast<int32_t>(draw(1) * first), first + static_cast<int32_t>(i % 2)},
            draw(2), draw(3) < 0.6, 0.01, 1, 0.1, static_cast<int64_t>(i / 10));
  }
  const std::vector<double> even(tasks, 1.0 / static_cast<double>(tasks));
  AgentRequest q;
  q.intent = even;
  q.explore = 0.1;
  q.features = a.features;
  for (q.id = 0; q.id < 5; ++q.id) {
    const Asked got = Ask(a, q);
    ASSERT_TRUE(got.status.ok()) << got.status;
    ASSERT_EQ(got.trace.size(), static_cast<size_t>(g.num_agents()));
    double sum[2] = {0, 0};
    for (const AgentCandidate& c : got.trace) {
      EXPECT_GE(c.p, 0.1 / g.stage_size(c.stage) - 1e-7);
      sum[c.stage] += c.p;
    }
    EXPECT_NEAR(sum[0], 1, 1e-4);
    EXPECT_NEAR(sum[1], 1, 1e-4);
  }
  const absl::Span<const double> state = a.state();
  AgentDecision d;
  const int64_t before = AllocationCount();
  ASSERT_TRUE(a.router().Run(a.plan(), state, q, d, nullptr).ok());
  EXPECT_EQ(AllocationCount(), before);
}
TEST_P(AgentRouters, TakesAStageOfAThousandAgents) {
  const RandomWeights weights({{"rows", 30}, {"width", 6}, {"agents", kMaxStageAgents + 2}});
  const auto g = MakeGraph(3, {kMaxStageAgents, 2});
  AgentUnderTest a(Method(), g, 8, &weights, Routers());
  a.features = a_.features;
  CheckLarge(a, *g);
}
TEST_P(AgentRouters, TakesTwoHundredAndFiftySixTasks) {
  const auto g = MakeGraph(kMaxTasks, {3, 4});
  AgentUnderTest a(Method(), g, 8, &Weights(), Routers());
  a.features = a_.features;
  CheckLarge(a, *g);
}

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const auto& [name, factory] : BuiltinRouters().agents) names.push_back(name);
  for (const auto& [name, factory] : PluginRouters().agents) names.push_back(kPlugin + name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(Builtin, AgentRouters, testing::ValuesIn(Names()),
                         [](const auto& i) { return i.param; });

TEST(AgentGraphs, BadOnesAreNamed) {
  auto router = *BuiltinRouters().agents.Create("random");
  auto refuse = [&](const std::function<void(AgentGraph&)>& spoil, const std::string& text) {
    auto g = MakeGraph(2, {2, 2});
    spoil(*g);
    EXPECT_THAT(router->MakePlan(g).status().message(), testing::HasSubstr(text));
  };
  refuse([](AgentGraph& g) { g.tasks.clear(); }, "0 tasks");
  refuse([](AgentGraph& g) { g.tasks[1] = g.tasks[0]; }, "two tasks are called 'task0'");
  refuse([](AgentGraph& g) { g.stages[1].clear(); }, "stage 1 has 0 agents");
  refuse([](AgentGraph& g) { g.stages.resize(9, g.stages[0]); }, "9 stages");
  refuse([](AgentGraph& g) { g.stages[1][0].id = "s0a1"; }, "two agents are called 's0a1'");
  refuse([](AgentGraph& g) { g = *MakeGraph(2, {kMaxStageAgents + 1}); },
         "stage 0 has 1025 agents, allowed 1 to 1024");
  refuse([](AgentGraph& g) { g = *MakeGraph(kMaxTasks + 1, {2}); }, "257 tasks, allowed 1 to 256");
  refuse([](AgentGraph& g) { g.stages[0][0].ability = {1}; }, "1 abilities");
  refuse([](AgentGraph& g) { g.stages[0][0].ability = {1, 1.5}; }, "ability 1.5");
  refuse([](AgentGraph& g) { g.stages[0][0].cost_usd = NAN; }, "must be in [0, 1e9]");
}
TEST(AgentGraphs, WhatFillsTheMemoryIsRefused) {
  const auto router = *BuiltinRouters().agents.Create("amro_s");
  const auto plan = router->MakePlan(MakeGraph(kMaxTasks, {kMaxStageAgents, kMaxStageAgents}));
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(plan.status().message(), testing::HasSubstr("allowed 268435456 of each"));
}

// The walk as a formula: with nothing explored, the bits of share / total, stage by stage.
TEST(AgentWalk, ExploringNothingIsTheFormulaToTheBit) {
  auto g = MakeGraph(1, {5, 3});
  for (size_t j = 0; j < 5; ++j) g->stages[0][j].weight = 0.1 * static_cast<double>(j + 1);
  for (size_t j = 0; j < 3; ++j) g->stages[1][j].weight = 1 / static_cast<double>(j + 3);
  AgentUnderTest a("weighted:seed=7", g);
  for (uint64_t id = 0; id < 500; ++id) {
    double propensity = 1;
    int32_t first = 0;
    std::vector<int32_t> path;
    for (uint64_t s = 0; s < 2; ++s) {
      const std::vector<Agent>& stage = g->stages[s];
      double total = 0;
      for (const Agent& agent : stage) total += agent.weight;
      const double u = RandomUniform({7, id, s, 0, 0});
      double upto = stage[0].weight / total;
      size_t j = 0;
      while (u >= upto && j + 1 < stage.size()) upto += stage[++j].weight / total;
      propensity *= stage[j].weight / total;
      path.push_back(first + static_cast<int32_t>(j));
      first += static_cast<int32_t>(stage.size());
    }
    const AgentDecision d = a.Route(id, {1});
    EXPECT_EQ(d.path[0], path[0]);
    EXPECT_EQ(d.path[1], path[1]);
    EXPECT_EQ(d.propensity, propensity);
  }
}
}  // namespace
SLUICE_END_NAMESPACE
