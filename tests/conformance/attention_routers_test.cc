// What every registered attention router must satisfy, at a small budget and at its full one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/builtin.h"
#include "sluice/tests/support/counting_allocator.h"
#include "sluice/tests/support/plugin_registry.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace {
// Budgets small enough to skip keys at a few hundred tokens.
const std::map<std::string, std::string> kSmallBudget = {
    {"dense", ""},
    {"sink_window", "sink=4,window=50"},
    {"oracle_block_topk", "block=16,k=4"},
    {"mean_pool", "block=16,k=4"},
    {"seer_attention", "block=16,density=0.3"},
    {"hip", "mask_k=32,block_q=16,sink=4,window=20"},
    {"dsa", "k=40"},
    {"hisa", "k=40,m=4,block=16"},
};

// The same methods again, out of a plug-in: "plugin_mean_pool".
const std::string kPlugin = "plugin_";
const FactoryMap<AttentionRouter>& Routers(const std::string& param) {
  return param.rfind(kPlugin, 0) == 0 ? PluginRouters().attention : BuiltinRouters().attention;
}
std::string NameOf(const std::string& param) {
  return param.rfind(kPlugin, 0) == 0 ? param.substr(kPlugin.size()) : param;
}

class AttentionRouters : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<const AttentionRouter> Make(const std::string& options) const {
    auto r = Routers(GetParam())
                 .Create(options.empty() ? NameOf(GetParam()) : NameOf(GetParam()) + ":" + options);
    EXPECT_TRUE(r.ok()) << r.status();
    return std::move(*r);
  }
  std::unique_ptr<const AttentionRouter> Small() const {
    auto it = kSmallBudget.find(NameOf(GetParam()));
    // A router that is not listed runs its defaults; tile-free ones may then skip nothing.
    return Make(it == kSmallBudget.end() ? "" : it->second);
  }
  std::unique_ptr<const AttentionRouter> Full() const {
    for (const auto& [name, factory] : Routers(GetParam())) {
      if (name == NameOf(GetParam())) return Make(factory->FullBudget());
    }
    return nullptr;
  }
};
INSTANTIATE_TEST_SUITE_P(All, AttentionRouters, testing::ValuesIn([] {
                           std::vector<std::string> names;
                           for (const auto& [name, factory] : BuiltinRouters().attention)
                             names.push_back(name);
                           for (const auto& [name, factory] : PluginRouters().attention)
                             names.push_back(kPlugin + name);
                           return names;
                         }()),
                         [](const auto& info) { return info.param; });

AttentionData Data(int64_t kv, int64_t q, uint64_t seed, int64_t heads = 4, int64_t kv_heads = 2,
                   int64_t dv = 24) {
  return MakeAttentionData(DataKind::kNeedles, kv, q, heads, kv_heads, 32, dv, seed);
}

TEST_P(AttentionRouters, FullBudgetIsDenseBitForBit) {
  auto dense = BuiltinRouters().attention.Create("dense");
  for (auto [kv, q, heads, kv_heads, dv] : {std::array<int64_t, 5>{300, 300, 4, 2, 24},
                                            {130, 1, 4, 1, 32},
                                            {1, 1, 2, 2, 16},
                                            {257, 65, 6, 2, 40}}) {
    const AttentionData a = Data(kv, q, 1, heads, kv_heads, dv);
    const RoutedRun full = RunRouter(*Full(), a), want = RunRouter(**dense, a);
    ASSERT_TRUE(full.status.ok()) << full.status;
    EXPECT_EQ(full.o, want.o) << kv << " keys, " << q << " queries";
    EXPECT_EQ(full.counters.exact_pairs, want.counters.exact_pairs);
    EXPECT_DOUBLE_EQ(full.counters.density(), 1);
  }
}
TEST_P(AttentionRouters, SkipsAndStaysWithinTheMassCertificate) {
  const AttentionData a = Data(320, 320, 2);
  HarnessOptions o;
  o.quality = true;
  o.chunk = 64;
  const RoutedRun r = RunRouter(*Small(), a, o);
  ASSERT_TRUE(r.status.ok()) << r.status;
  if (NameOf(GetParam()) != "dense" && kSmallBudget.count(NameOf(GetParam())) > 0) {
    EXPECT_LT(r.counters.density(), 0.75);
  }
  EXPECT_LE(r.quality.bound_slack.max(), 1);
  EXPECT_LE(r.quality.mass_recall.max(), 1 + 1e-9);
  int64_t pairs = 0;
  for (const auto& list : r.lists) {
    pairs += static_cast<int64_t>(list.size());
    EXPECT_FALSE(list.empty());
    EXPECT_EQ(std::adjacent_find(list.begin(), list.end()), list.end()) << "a key is listed twice";
  }
  EXPECT_EQ(r.counters.exact_pairs, pairs);
}
TEST_P(AttentionRouters, NeverLooksAhead) {
  const int64_t t = 150;
  AttentionData a = Data(260, 260, 3);
  const RoutedRun before = RunRouter(*Small(), a);
  for (int64_t s = t + 1; s < 260; ++s) {
    for (int64_t x = 0; x < 2 * 32; ++x) a.k[s * 64 + x] += 3;
    for (int64_t x = 0; x < 2 * 24; ++x) a.v[s * 48 + x] -= 2;
  }
  const std::unique_ptr<const AttentionRouter> router = Small();
  const RoutedRun after = RunRouter(*router, a);
  ASSERT_TRUE(after.status.ok());
  for (int64_t i = 0; i < 260; ++i) {
    for (int64_t h = 0; h < 4; ++h) {
      const auto& list = after.lists[i * 4 + h];
      EXPECT_LE(list.back(), i);
      if (i > t || !router->token_causal()) continue;
      EXPECT_EQ(list, before.lists[i * 4 + h]) << "query " << i;
    }
    if (i <= t && router->token_causal()) {
      for (int64_t x = 0; x < 4 * 24; ++x) EXPECT_EQ(after.o[i * 96 + x], before.o[i * 96 + x]);
    }
  }
}
TEST_P(AttentionRouters, SameBitsForAnyThreadCount) {
  const AttentionData a = Data(300, 300, 4);
  HarnessOptions one, four;
  one.chunk = four.chunk = 128;
  four.threads = 4;
  const RoutedRun x = RunRouter(*Small(), a, one), y = RunRouter(*Small(), a, four);
  EXPECT_EQ(x.o, y.o);
  EXPECT_EQ(x.lists, y.lists);
}
TEST_P(AttentionRouters, ExecutorModesAgree) {
  const AttentionData a = Data(300, 300, 5);
  const RoutedRun want = RunRouter(*Small(), a);
  for (AttendOptions attend : {AttendOptions{.mode = AttendMode::kKvMajor},
                               AttendOptions{.token_group = 1}, AttendOptions{.token_group = 16}}) {
    HarnessOptions o;
    o.attend = attend;
    const RoutedRun r = RunRouter(*Small(), a, o);
    if (r.status.code() == absl::StatusCode::kUnimplemented)
      continue;  // windows over tall tiles have no KV-major form
    ASSERT_TRUE(r.status.ok()) << r.status;
    for (size_t i = 0; i < r.o.size(); ++i) ASSERT_NEAR(r.o[i], want.o[i], 2e-5);
  }
}
TEST_P(AttentionRouters, ChunkedPrefillMatchesOneCall) {
  // Chunks that are whole tiles give the same lists: summaries appended over calls equal summaries
  // made at once.
  const AttentionData a = Data(320, 320, 6);
  HarnessOptions chunked;
  chunked.chunk = 64;
  const RoutedRun x = RunRouter(*Small(), a), y = RunRouter(*Small(), a, chunked);
  ASSERT_TRUE(x.status.ok() && y.status.ok());
  if (NameOf(GetParam()) == "seer_attention")
    return;  // its density rule counts the blocks of the whole call
  EXPECT_EQ(x.lists, y.lists);
  for (size_t i = 0; i < x.o.size(); ++i) ASSERT_NEAR(x.o[i], y.o[i], 2e-5);
}
TEST_P(AttentionRouters, DecodeFollowsPrefill) {
  const AttentionData a = Data(200, 40, 7);
  HarnessOptions step;
  step.chunk = 1;
  const RoutedRun r = RunRouter(*Small(), a, step);
  ASSERT_TRUE(r.status.ok()) << r.status;
  const RoutedRun full = RunRouter(*Full(), a, step), all = RunRouter(*Full(), a);
  for (size_t i = 0; i < full.o.size(); ++i) ASSERT_NEAR(full.o[i], all.o[i], 2e-5);
}
TEST_P(AttentionRouters, HalfPrecisionKeys) {
  for (DType t : {DType::kBF16, DType::kF16}) {
    AttentionData a = Data(200, 200, 8);
    a.Convert(t);
    HarnessOptions o;
    o.attend.amx = false;
    const RoutedRun r = RunRouter(*Full(), a, o);
    ASSERT_TRUE(r.status.ok()) << r.status;
    AttentionData f = a;
    f.dtype = DType::kF32;
    const RoutedRun want = RunRouter(*Full(), f, o);
    for (size_t i = 0; i < r.o.size(); ++i) ASSERT_NEAR(r.o[i], want.o[i], 2e-5);
  }
}
TEST_P(AttentionRouters, RunDoesNotAllocate) {
  const AttentionData a = Data(256, 256, 9);
  auto router = Small();
  AttentionShape s{256, 256, 4, 2, 32, 24, 0, 0, 1};
  auto plan = router->MakePlan(s);
  ASSERT_TRUE(plan.ok());
  const AttentionPlanInfo& info = (*plan)->info();
  auto attend = Attend::Create({256, 256, 4, 2, 32, 24});
  OwnedWorkspace ws(info.workspace_bytes), aws(attend->workspace_bytes()), state(info.state_bytes);
  AttentionPlanBuffer buffer;
  buffer.Reserve(info.max_rows, info.entry_slots, info.token_slots, info.prefix_slots);
  InlineExecutor ex;
  std::vector<float> o(256 * 4 * 24);
  AttentionCounters counters;
  AttendOutputs out;
  out.o = {o.data(), 256, 4, 24, 96, 24};
  out.counters = &counters;
  const AttentionInputs in = a.Inputs();
  AttendInputs ai;
  ai.q = in.q;
  ai.k = in.k;
  ai.v = in.v;
  ai.scale = in.scale;
  for (int pass = 0; pass < 2; ++pass) {
    const int64_t before = AllocationCount();
    const bool ok = router->Run(**plan, in, state.data(), {ws.workspace(), &ex}, buffer).ok() &&
                    attend->Run(buffer.plan(), ai, {aws.workspace(), &ex}, out).ok();
    const int64_t allocations = AllocationCount() - before;
    EXPECT_TRUE(ok);
    EXPECT_EQ(allocations, 0);
  }
}
TEST_P(AttentionRouters, ErrorsAreClear) {
  auto router = Small();
  EXPECT_FALSE(router->MakePlan({0, 10, 4, 2, 32, 32}).ok());
  EXPECT_FALSE(router->MakePlan({1, 10, 3, 2, 32, 32}).ok());
  auto plan = router->MakePlan({16, 64, 4, 2, 32, 24});
  ASSERT_TRUE(plan.ok());
  const AttentionData a = Data(100, 100, 1);
  AttentionPlanBuffer buffer;
  InlineExecutor ex;
  const absl::Status s = router->Run(**plan, a.Inputs(), nullptr, {{}, &ex}, buffer);
  EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(s.message()), testing::HasSubstr("planned for at most"));
  auto unknown = Routers(GetParam()).Create(NameOf(GetParam()) + ":no_such_key=1");
  EXPECT_THAT(std::string(unknown.status().message()),
              testing::HasSubstr("unknown key 'no_such_key'"));
}
TEST_P(AttentionRouters, ConfigPrintsAndReadsBack) {
  for (const auto& [name, factory] : Routers(GetParam())) {
    if (name != NameOf(GetParam())) continue;
    EXPECT_TRUE(factory->Create(ParseSpec("x:" + factory->FullBudget())->options, nullptr).ok());
    EXPECT_FALSE(factory->Describe().empty());
  }
}
}  // namespace
SLUICE_END_NAMESPACE
