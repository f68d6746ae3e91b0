#ifndef SLUICE_TESTS_SUPPORT_AGENT_FIXTURE_H_
#define SLUICE_TESTS_SUPPORT_AGENT_FIXTURE_H_
// Agent graphs and one learning agent router, as tests need them.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/routers/builtin.h"
#include "sluice/runtime/store/ledger.h"

SLUICE_BEGIN_NAMESPACE
// `tasks` tasks; stage s has sizes[s] agents called "s<stage>a<index>", of rising cost.
inline std::shared_ptr<AgentGraph> MakeGraph(int tasks, const std::vector<int>& sizes) {
  auto g = std::make_shared<AgentGraph>();
  for (int t = 0; t < tasks; ++t) g->tasks.push_back(absl::StrCat("task", t));
  for (size_t s = 0; s < sizes.size(); ++s) {
    g->stages.emplace_back();
    for (int j = 0; j < sizes[s]; ++j) {
      Agent a;
      a.id = absl::StrCat("s", s, "a", j);
      a.cost_usd = 0.001 * (j + 1);
      a.latency_s = 0.5;
      g->stages.back().push_back(a);
    }
  }
  return g;
}

class AgentUnderTest {
 public:
  AgentUnderTest(std::string spec, std::shared_ptr<const AgentGraph> graph, int64_t window = 8,
                 const WeightSource* weights = nullptr,
                 const FactoryMap<AgentRouter>& routers = BuiltinRouters().agents)
      : graph_(std::move(graph)) {
    auto made = routers.Create(spec, weights);
    EXPECT_TRUE(made.ok()) << made.status();
    router_ = std::move(*made);
    auto plan = router_->MakePlan(graph_);
    EXPECT_TRUE(plan.ok()) << plan.status();
    plan_ = std::move(*plan);
    ledger_ = std::make_unique<Ledger>(*router_, *plan_, window);
  }
  AgentDecision Route(uint64_t id, const std::vector<double>& intent, AgentTrace* trace = nullptr,
                      absl::Span<const Block> blocked = {}, absl::Span<const AgentLive> live = {}) {
    AgentRequest q;
    q.id = id;
    q.intent = intent;
    q.blocked = blocked;
    q.live = live;
    q.features = features;
    AgentDecision d;
    const absl::Status status = router_->Run(*plan_, ledger_->State(), q, d, trace);
    EXPECT_TRUE(status.ok()) << status;
    return d;
  }
  // Learns one outcome, in an epoch of its own unless one is given.
  void Learn(const std::vector<double>& intent, const std::vector<int32_t>& path, double quality,
             bool accepted, double cost = 0, double latency = 0, double propensity = 1,
             int64_t epoch = -1) {
    AgentOutcome o;
    o.intent = intent;
    o.path = path;
    o.quality = quality;
    o.accepted = accepted;
    o.features = features;
    o.cost_usd = cost;
    o.latency_s = latency;
    o.propensity = propensity;
    deltas_.clear();
    router_->Observe(*plan_, o, deltas_);
    ledger_->Add(epoch < 0 ? ++epoch_ : static_cast<uint64_t>(epoch), deltas_);
  }
  absl::Span<const double> state() { return ledger_->State(); }
  const AgentGraph& graph() const { return *graph_; }
  const AgentRouter& router() const { return *router_; }
  const AgentRouter::Plan& plan() const { return *plan_; }
  Ledger& ledger() { return *ledger_; }
  std::vector<float> features;

 private:
  std::shared_ptr<const AgentGraph> graph_;
  std::unique_ptr<const AgentRouter> router_;
  std::unique_ptr<const AgentRouter::Plan> plan_;
  std::unique_ptr<Ledger> ledger_;
  std::vector<SumDelta> deltas_;
  uint64_t epoch_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_AGENT_FIXTURE_H_
