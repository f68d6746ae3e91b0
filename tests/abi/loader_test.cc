// Plug-ins through the loader: good ones do what is built in, bad ones are refused with a reason.
#include "sluice/runtime/dynload/plugin_library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
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
// For plug-ins that never finish loading; all others do in a fraction of it.
constexpr std::chrono::milliseconds kLimit{1000};

TEST(Plugins, SayWhatIsInThemBeforeTheyRun) {
  const auto m = ReadPluginManifest(kFolder + "/strided.so");
  ASSERT_TRUE(m.ok()) << m.status();
  EXPECT_EQ(m->name, "strided");
  EXPECT_EQ(m->version, "2.0.0");
  EXPECT_EQ(m->abi_major, 2u);
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
  HarnessOptions o;
  o.methods = &r;
  const RoutedRun sparse = RunRouter("strided:stride=6,local=2", a, o);
  const RoutedRun full = RunRouter("strided:stride=1", a, o);
  const RoutedRun dense = RunRouter("dense", a);
  ASSERT_TRUE(sparse.status.ok()) << sparse.status;
  EXPECT_LT(sparse.counters.density(), 0.6);
  EXPECT_EQ(full.o, dense.o);
  EXPECT_THAT(r.attention.Create("strided:stride=0").status().message(), HasSubstr("strided: "));
  EXPECT_THAT(r.attention.Create("strided:width=1").status().message(),
              HasSubstr("unknown key 'width'; known: stride, local"));
  EXPECT_THAT(LoadPlugin(kFolder + "/strided.so", r).status().message(),
              HasSubstr("'strided' is registered already"));
}

// Built when ABI 1.0 was made: refused by its manifest, before any of it runs.
TEST(Plugins, OneOfAnEarlierMajorNumberIsRefusedWithThatReason) {
  Registry r;
  const std::string file = std::string(SLUICE_SOURCE_DIR) + "/tests/abi/frozen/1_0/first_unit.so";
  EXPECT_THAT(
      LoadPlugin(file, r).status().message(),
      HasSubstr("first_unit.so: built for ABI 1.0, wants a host of at least 1.0; this host is "
                "2.0"));
  EXPECT_EQ(r.routers.size(), 0u);
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

// What a plug-in writes is checked before a kernel sees it.
TEST(Plugins, PlansThatBreakTheRulesAreFoundOut) {
  Registry r;
  ASSERT_TRUE(LoadPlugin(kBad + "/liars.so", r).ok());
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 40, 8, 4, 2, 16, 16, 5);
  HarnessOptions o;
  o.methods = &r;
  o.validate = false;  // the codec alone has to see it
  EXPECT_TRUE(RunRouter("liar:how=0", a, o).status.ok());
  for (int how = 1; how <= 39; ++how) {
    const absl::Status s = RunRouter(absl::StrCat("liar:how=", how), a, o).status;
    EXPECT_FALSE(s.ok()) << how;
  }
  EXPECT_THAT(RunRouter("liar:how=2", a, o).status.message(),
              HasSubstr("names key 4294967295 of 40"));
  EXPECT_THAT(RunRouter("liar:how=20", a, o).status.message(), HasSubstr("more than 2^46 bytes"));
}

TEST(Plugins, AssignmentsThatBreakTheRulesAreFoundOut) {
  Registry r;
  ASSERT_TRUE(LoadPlugin(kBad + "/liars.so", r).ok());
  InlineExecutor one;
  for (int how = 0; how <= 11; ++how) {
    const auto router = r.routers.Create(absl::StrCat("assignment_liar:how=", how));
    ASSERT_TRUE(router.ok()) << router.status();
    const auto plan = (*router)->MakePlan({.items = 3});
    ASSERT_TRUE(plan.ok()) << plan.status();
    AssignmentBuffer out;
    out.Reserve(3, (*plan)->info().max_entries, (*plan)->info().max_dropped);
    RouteInputs in;
    in.items = 3;
    EXPECT_EQ((*router)->Run(**plan, in, {{}, &one}, out.view()).ok(), how == 0) << how;
  }
}

TEST(Plugins, BadOnesAreRefusedWithAReason) {
  const std::pair<const char*, const char*> kWhy[] = {
      {"no_manifest", "it has no section .sluice_manifest"},
      {"future_major", "built for ABI 3.0"},
      {"future_minor", "wants a host of at least 2.9; this host is 2.0"},
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
      {"sleeps", "does not finish loading within 1 s"},
      {"sleeps_in_entry", "does not finish loading within 1 s"},
      {"forks", "does not want this host"},
      {"forges", "ends the process when it is loaded"},
      {"forges_in_entry", "does not want this host"},
  };
  for (const auto& [name, why] : kWhy) {
    Registry r;
    const std::string file = kBad + "/" + name + ".so";
    const absl::Status s = LoadPlugin(file, r, /*isolated=*/true, kLimit).status();
    EXPECT_THAT(s.message(), HasSubstr(why)) << name;
    EXPECT_THAT(s.message(), HasSubstr(name));
    EXPECT_EQ(r.attention.size() + r.routers.size(), 0u);
  }
  EXPECT_THAT(ReadPluginManifest("/etc/hostname").status().message(),
              HasSubstr("no 64-bit ELF file"));
  EXPECT_THAT(ReadPluginManifest("/nowhere.so").status().message(), HasSubstr("cannot be read"));
}

// None of them is read: reading a FIFO or a terminal may never end.
TEST(Plugins, WhatIsNoRegularFileIsRefused) {
  const std::string folder = testing::TempDir() + "/sluice-odd-" + std::to_string(getpid());
  std::filesystem::create_directory(folder);
  const auto at = [&](const char* name) { return folder + "/" + name + ".so"; };
  ASSERT_EQ(mkfifo(at("fifo").c_str(), 0600), 0);
  std::filesystem::create_directory(at("folder"));
  std::filesystem::create_symlink(at("fifo"), at("to_fifo"));
  std::filesystem::create_symlink(at("folder"), at("to_folder"));
  std::filesystem::create_symlink("/dev/zero", at("to_device"));
  std::filesystem::create_symlink(folder + "/nothing", at("to_nothing"));
  std::filesystem::create_symlink(kFolder + "/strided.so", at("to_plugin"));
  const std::pair<const char*, const char*> kWhy[] = {
      {"fifo", "it is a FIFO, wanted a regular file"},
      {"to_fifo", "it is a FIFO, wanted a regular file"},
      {"folder", "it is a directory, wanted a regular file"},
      {"to_folder", "it is a directory, wanted a regular file"},
      {"to_device", "it is a device, wanted a regular file"},
      {"to_nothing", "cannot be read"},
  };
  for (const auto& [name, why] : kWhy) {
    EXPECT_THAT(ReadPluginManifest(at(name)).status().message(), HasSubstr(why)) << name;
    EXPECT_THAT(CheckPlugin(at(name)).status().message(), HasSubstr(why)) << name;
  }
  Registry r;
  std::vector<absl::Status> refused;
  EXPECT_EQ(LoadPlugins({folder}, r, refused).size(), 1u);  // the link to a plug-in
  EXPECT_EQ(refused.size(), std::size(kWhy));
  std::filesystem::remove_all(folder);
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
  const auto loaded = LoadPlugins({kBad, kFolder}, r, refused, kLimit);
  EXPECT_EQ(refused.size(), 19u + SLUICE_HAVE_GGML);  // ggml's backend is no plug-in of this kind
  EXPECT_EQ(loaded.size(), 5u);
}
}  // namespace
SLUICE_END_NAMESPACE
