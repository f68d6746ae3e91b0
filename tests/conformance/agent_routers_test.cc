// What every built-in agent router must do, whatever its method, and the same again out of a
// plug-in.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

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
  refuse([](AgentGraph& g) { g.stages[0][0].ability = {1}; }, "1 abilities");
  refuse([](AgentGraph& g) { g.stages[0][0].ability = {1, 1.5}; }, "ability 1.5");
  refuse([](AgentGraph& g) { g.stages[0][0].cost_usd = NAN; }, "must be in [0, 1e9]");
}
}  // namespace
SLUICE_END_NAMESPACE
