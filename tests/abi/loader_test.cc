// Plug-ins through the loader: good ones do what is built in, bad ones are refused with a reason.
#include "sluice/runtime/dynload/plugin_library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdio>
#include <fstream>

#include "sluice/routers/builtin.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/tests/support/agent_fixture.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using testing::Contains;
using testing::HasSubstr;
const std::string kFolder = SLUICE_PLUGINS, kBad = SLUICE_BAD_PLUGINS;

TEST(Plugins, SayWhatIsInThemBeforeTheyRun) {
  const auto m = ReadPluginManifest(kFolder + "/strided.so");
  ASSERT_TRUE(m.ok()) << m.status();
  EXPECT_EQ(m->name, "strided");
  EXPECT_EQ(m->version, "1.0.0");
  EXPECT_EQ(m->abi_major, 1u);
  const auto all = CheckPlugin(kFolder + "/sluice-builtin.so");
  ASSERT_TRUE(all.ok()) << all.status();
  for (const char* method :
       {"attention/mean_pool", "attention/hip", "layer/flux_attention", "token/ftp", "head/shrp",
        "agent/amro_s", "expert/top_k", "weight/magnitude"})
    EXPECT_THAT(all->methods, Contains(method));
}

TEST(Plugins, AnotherOnesRouterIsARouter) {
  Registry r;
  const auto info = LoadPlugin(kFolder + "/strided.so", r);
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_THAT(info->methods, testing::ElementsAre("attention/strided"));
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 1000, 1000, 4, 2, 16, 16, 5);
  const RoutedRun sparse = RunRouter(**r.attention.Create("strided:stride=6,local=2"), a),
                  full = RunRouter(**r.attention.Create("strided:stride=1"), a),
                  dense = RunRouter(**BuiltinRouters().attention.Create("dense"), a);
  ASSERT_TRUE(sparse.status.ok()) << sparse.status;
  EXPECT_LT(sparse.counters.density(), 0.6);
  EXPECT_EQ(full.o, dense.o);
  EXPECT_THAT(r.attention.Create("strided:stride=0").status().message(), HasSubstr("strided: "));
  EXPECT_THAT(r.attention.Create("strided:width=1").status().message(),
              HasSubstr("unknown key 'width'; known: stride, local"));
  EXPECT_THAT(LoadPlugin(kFolder + "/strided.so", r).status().message(),
              HasSubstr("'strided' is registered already"));
}

TEST(Plugins, AnAgentRouterToo) {
  Registry r;
  ASSERT_TRUE(LoadPlugin(kFolder + "/cheapest.so", r).ok());
  auto graph = MakeGraph(2, {3});  // of rising cost
  for (int j = 0; j < 3; ++j) graph->stages[0][j].ability = {0.3 * (j + 1), 0.9 - 0.3 * j};
  AgentUnderTest a("cheapest:able=0.5", graph, 8, nullptr, r.agents);
  EXPECT_EQ(a.Route(1, {1, 0}).path[0], 1);
  EXPECT_EQ(a.Route(1, {0, 1}).path[0], 0);
  EXPECT_EQ(
      a.Route(1, {0, 1}, nullptr, std::vector<Block>{Block::kUnhealthy, Block::kNone, Block::kNone})
          .path[0],
      1);
  EXPECT_THAT(r.agents.Create("cheapest:able=2").status().message(), HasSubstr("able"));
  graph->tasks.clear();
  EXPECT_THAT((*r.agents.Create("cheapest"))->MakePlan(graph).status().message(),
              HasSubstr("0 tasks"));
}

TEST(Plugins, ExceptionsStayInside) {
  Registry r;
  ASSERT_TRUE(LoadPlugin(kBad + "/throwing.so", r).ok());
  EXPECT_THAT(r.routers.Create("throwing:when=0").status().message(),
              HasSubstr("thrown by create"));
  const auto planner = r.routers.Create("throwing:when=1");
  ASSERT_TRUE(planner.ok());
  EXPECT_EQ((*planner)->MakePlan({.items = 1}).status().code(),
            absl::StatusCode::kResourceExhausted);
  const auto runner = r.routers.Create("throwing:when=2");
  const auto plan = (*runner)->MakePlan({.items = 1});
  ASSERT_TRUE(plan.ok());
  AssignmentBuffer out;
  EXPECT_THAT((*runner)->Run(**plan, {}, {}, out.view()).message(), HasSubstr("no std::exception"));
}

TEST(Plugins, BadOnesAreRefusedWithAReason) {
  const std::pair<const char*, const char*> kWhy[] = {
      {"no_manifest", "it has no section .sluice_manifest"},
      {"future_major", "built for ABI 2.0"},
      {"future_minor", "wants a host of at least 1.9; this host is 1.1"},
      {"odd_manifest", "manifest is of an unknown kind"},
      {"no_entry", "exports no sluice_plugin_entry_v1"},
      {"null_entry", "does not want this host"},
      {"short_record", "its record has 16 bytes"},
      {"wrong_magic", "wrong magic"},
      {"null_table", "tables are missing"},
      {"null_function", "attention router 0 is incomplete"},
      {"short_table", "attention router 0 is incomplete"},
      {"null_agents", "tables are missing"},
      {"crashes", "crashes when it is loaded (signal 6)"},
      {"exits", "ends the process when it is loaded"},
  };
  for (const auto& [name, why] : kWhy) {
    Registry r;
    const absl::Status s = LoadPlugin(kBad + "/" + name + ".so", r).status();
    EXPECT_THAT(s.message(), HasSubstr(why)) << name;
    EXPECT_THAT(s.message(), HasSubstr(name));
    EXPECT_EQ(r.attention.size() + r.routers.size(), 0u);
  }
  EXPECT_THAT(ReadPluginManifest("/etc/hostname").status().message(),
              HasSubstr("no 64-bit ELF file"));
  EXPECT_THAT(ReadPluginManifest("/nowhere.so").status().message(), HasSubstr("cannot be read"));
}

TEST(Plugins, DamagedFilesAreRefused) {
  std::ifstream f(kFolder + "/strided.so", std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(f)), std::istreambuf_iterator<char>());
  const std::string path = "/tmp/sluice-damaged-" + std::to_string(getpid()) + ".so";
  for (uint64_t i = 0; i < 300; ++i) {
    std::string bad = whole;
    if (i % 2 == 0) {
      bad.resize(RandomBits({1, i, 0, 0, 0}) % whole.size());
    } else {
      for (uint64_t k = 0; k < 64; ++k)
        bad[RandomBits({2, i, k, 0, 0}) % 64] = static_cast<char>(RandomBits({3, i, k, 0, 0}));
    }
    std::ofstream(path, std::ios::binary)
        .write(bad.data(), static_cast<std::streamsize>(bad.size()));
    (void)ReadPluginManifest(path);  // reads or refuses, never worse
  }
  std::remove(path.c_str());
}

TEST(Plugins, AreFoundInTheFoldersOfThePath) {
  setenv("SLUICE_PLUGIN_PATH", (kBad + ":" + kFolder).c_str(), 1);
  const std::vector<std::string> folders = PluginFolders();
  ASSERT_GE(folders.size(), 2u);
  EXPECT_EQ(folders[1], kFolder);
  Registry r;
  std::vector<absl::Status> refused;
  const auto loaded = LoadPlugins({kBad, kFolder}, r, refused);
  EXPECT_EQ(refused.size(), 14u + SLUICE_HAVE_GGML);  // ggml's backend is no plug-in of this kind
  EXPECT_EQ(loaded.size(), 4u);
}
}  // namespace
SLUICE_END_NAMESPACE
