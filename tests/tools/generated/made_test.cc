// Agent routers as they are made, out of the plug-in: they choose what the built-in ones choose.
#include <gtest/gtest.h>

#include "sluice/tests/support/agent_fixture.h"
#include "sluice/tests/support/plugin_registry.h"

SLUICE_BEGIN_NAMESPACE
namespace {
TEST(Made, AgentRoutersRunAsAPlugIn) {
  ASSERT_GT(PluginRouters().agents.size(), 0u);
  for (const auto& [name, factory] : PluginRouters().agents) {
    AgentUnderTest remote(name, MakeGraph(2, {3, 4}), 8, nullptr, PluginRouters().agents);
    AgentUnderTest own(name, MakeGraph(2, {3, 4}));
    for (uint64_t id = 0; id < 20; ++id)
      EXPECT_EQ(remote.Route(id, {0.5, 0.5}).path, own.Route(id, {0.5, 0.5}).path) << name;
  }
}
}  // namespace
SLUICE_END_NAMESPACE
