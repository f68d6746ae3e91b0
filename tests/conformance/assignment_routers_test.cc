// What every built-in router of items to units must do, whatever its method.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "sluice/routers/builtin.h"
#include "sluice/tests/support/counting_allocator.h"
#include "sluice/tests/support/plugin_registry.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int64_t kItems = 70, kUnits = 2, kWidth = 32;
const RandomWeights& Weights() {
  static const auto* w = new RandomWeights(
      {{"dim", kWidth}, {"layers", 2}, {"pool", 10}, {"hidden", 12}, {"rank", 8}, {"silu", 1}});
  return *w;
}
struct Out {
  std::vector<int32_t> row_ptr = std::vector<int32_t>(kItems + 1),
                       unit = std::vector<int32_t>(kItems);
  std::vector<float> weight = std::vector<float>(kItems);
  Assignment a;
  Out() {
    a.row_ptr = absl::MakeSpan(row_ptr);
    a.unit = absl::MakeSpan(unit);
    a.weight = absl::MakeSpan(weight);
  }
};
class AssignmentRouters : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto made = Create("");
    ASSERT_TRUE(made.ok()) << made.status();
    router_ = std::move(*made);
    auto plan = router_->MakePlan({kItems, kUnits, kWidth, 1});
    ASSERT_TRUE(plan.ok()) << plan.status();
    plan_ = std::move(*plan);
    memory_ = std::make_unique<OwnedWorkspace>(plan_->info().workspace_bytes);
    ctx_.workspace = {memory_->data(), plan_->info().workspace_bytes};
    ctx_.executor = &inline_;
  }
  // The same methods again, out of a plug-in: "plugin_flux_attention".
  absl::StatusOr<std::unique_ptr<const Router>> Create(const std::string& options) const {
    const bool plugin = GetParam().rfind("plugin_", 0) == 0;
    return plugin ? PluginRouters().routers.Create(GetParam().substr(7) + options, &Weights())
                  : BuiltinRouters().routers.Create(GetParam() + options, &Weights());
  }
  absl::Status Run(const std::vector<float>& x, Out& out) {
    RouteInputs in;
    in.features = {x.data(), static_cast<int64_t>(x.size()) / kWidth, kWidth, kWidth};
    return router_->Run(*plan_, in, ctx_, out.a);
  }
  std::unique_ptr<const Router> router_;
  std::unique_ptr<const Router::Plan> plan_;
  std::unique_ptr<OwnedWorkspace> memory_;
  InlineExecutor inline_;
  RunContext ctx_;
};
std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const auto& [name, factory] : BuiltinRouters().routers) {
    names.push_back(name);
    if (PluginRouters().routers.size() > 0) names.push_back("plugin_" + name);
  }
  return names;
}
INSTANTIATE_TEST_SUITE_P(All, AssignmentRouters, testing::ValuesIn(Names()));

TEST_P(AssignmentRouters, GivesAValidAssignmentWithoutAllocating) {
  const std::vector<float> x = RandomFeatures(kItems, kWidth, 1);
  Out out;
  const int64_t before = AllocationCount();
  const absl::Status status = Run(x, out);
  EXPECT_EQ(AllocationCount(), before);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(out.a.items, kItems);
  EXPECT_TRUE(ValidateAssignment(out.a).ok()) << ValidateAssignment(out.a);
  EXPECT_LE(out.a.row_ptr[kItems], plan_->info().max_entries);
}
TEST_P(AssignmentRouters, ItemsDoNotDependOnTheirNeighbours) {
  const std::vector<float> x = RandomFeatures(kItems, kWidth, 2);
  Out all;
  ASSERT_TRUE(Run(x, all).ok());
  for (int64_t i = 0; i < kItems; ++i) {
    Out one;
    ASSERT_TRUE(Run({x.begin() + i * kWidth, x.begin() + (i + 1) * kWidth}, one).ok());
    EXPECT_EQ(one.unit[0], all.unit[i]) << i;
  }
}
TEST_P(AssignmentRouters, TakesNothingAndNaN) {
  Out out;
  ASSERT_TRUE(Run({}, out).ok());
  EXPECT_EQ(out.a.items, 0);
  std::vector<float> x = RandomFeatures(3, kWidth, 3);
  x[kWidth + 5] = NAN;
  Out odd;
  ASSERT_TRUE(Run(x, odd).ok());
  odd.a.row_ptr = odd.a.row_ptr.first(4);
  EXPECT_TRUE(ValidateAssignment(odd.a).ok()) << ValidateAssignment(odd.a);
}
TEST_P(AssignmentRouters, ErrorsSayWhatWasGiven) {
  Out out;
  EXPECT_THAT(std::string(Run(RandomFeatures(kItems + 1, kWidth, 1), out).message()),
              testing::HasSubstr("planned for at most"));
  EXPECT_THAT(std::string(router_->MakePlan({kItems, kUnits, kWidth + 1, 1}).status().message()),
              testing::HasSubstr("wanted"));
  EXPECT_THAT(std::string(Create(":no_such_key=1").status().message()),
              testing::HasSubstr("unknown key 'no_such_key'"));
  ctx_.workspace.bytes = 0;
  EXPECT_THAT(std::string(Run(RandomFeatures(2, kWidth, 1), out).message()),
              testing::HasSubstr("workspace of 0 bytes"));
}
}  // namespace
SLUICE_END_NAMESPACE
