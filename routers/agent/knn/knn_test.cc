#include "sluice/routers/agent/knn/knn.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/tests/support/agent_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
namespace knn_test {
// Four stored queries in two directions; agent 0 answers the first two, agent 1 the others.
class Stored : public WeightSource {
 public:
  absl::StatusOr<int64_t> Int(const std::string& key) const override {
    return key == "sluice.knn.rows" ? 4 : key == "sluice.knn.width" ? 2 : 2;
  }
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t>) const override {
    if (name == "knn.features") return std::vector<float>{3, 0, 2, 0.1f, 0, 1, 0.1f, 5};
    if (name == "knn.quality") return std::vector<float>{1, 0, 1, 0, 0, 1, 0, 1};
    if (name == "knn.cost") return std::vector<float>{0.1f, 0, 0.1f, 0, 0.1f, 0, 0.1f, 0};
    return std::vector<float>(8, 0.0f);
  }
};

TEST(Knn, AsksTheNeighbours) {
  const Stored stored;
  AgentUnderTest a("knn:k=2", MakeGraph(1, {2}), 8, &stored);
  a.features = {1, 0};
  EXPECT_EQ(a.Route(1, {1}).path[0], 0);
  a.features = {0.2f, 0.9f};
  EXPECT_EQ(a.Route(1, {1}).path[0], 1);
}

TEST(Knn, WeighsCostAndWantsFeatures) {
  const Stored stored;
  AgentUnderTest a("knn:k=1,cost_weight=11", MakeGraph(1, {2}), 8, &stored);
  a.features = {1, 0};
  AgentTrace trace;
  EXPECT_EQ(a.Route(1, {1}, &trace).path[0], 1);
  EXPECT_NEAR(trace[0].eta, 1 - 1.1, 1e-6);
  AgentRequest q;
  const std::vector<double> intent = {1};
  q.intent = intent;
  AgentDecision d;
  EXPECT_THAT(a.router().Run(a.plan(), a.state(), q, d, nullptr).message(),
              testing::HasSubstr("0 features, wanted 2"));
  EXPECT_FALSE(BuiltinRouters().agents.Create("knn").ok());  // needs weights
}
}  // namespace knn_test
}  // namespace agent
SLUICE_END_NAMESPACE
