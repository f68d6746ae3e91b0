// What every registered attention router must satisfy, as its Traits say: at a small budget and at
// its full one, built in and out of a plug-in, learned ones with synthetic weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/common/reference.h"
#include "sluice/tests/support/counting_allocator.h"
#include "sluice/tests/support/plugin_registry.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr AttentionShape kShape = {.max_queries = 320,
                                   .max_kv = 320,
                                   .heads = 4,
                                   .kv_heads = 2,
                                   .head_dim = 32,
                                   .value_dim = 24,
                                   .layers = 4,
                                   .width = 24};

struct Method {
  std::string name;
  bool plugin = false;
};
void PrintTo(const Method& m, std::ostream* out) { *out << (m.plugin ? "plugin " : "") << m.name; }

class AttentionRouters : public testing::TestWithParam<Method> {
 protected:
  void SetUp() override {
    if (GetParam().plugin) {
      ASSERT_TRUE(AddPluginRouters(methods_).ok());
    } else {
      ASSERT_TRUE(AddBuiltinRouters(methods_).ok());
    }
    factory_ = *methods_.attention.Find(GetParam().name);
  }
  const AttentionTraits& traits() const { return factory_->traits(); }
  std::string Policy(const std::string& budget) const {
    std::string text = GetParam().name;
    if (factory_->learned()) absl::StrAppend(&text, ":weights=synthetic");
    if (!budget.empty()) absl::StrAppend(&text, factory_->learned() ? "," : ":", budget);
    return text;
  }
  // Queries a call, where calls may be of some of the tokens.
  int64_t Chunk(int64_t queries) const { return traits().bidirectional ? 0 : queries; }
  std::string Small() const { return Policy(traits().small_budget); }
  std::string Full() const { return Policy(traits().full_budget); }

  RoutedRun Run(const std::string& policy, const AttentionData& a, HarnessOptions o = {}) {
    const absl::Status weights = WithSyntheticWeights(policy, a.Shape(), 7, methods_);
    EXPECT_TRUE(weights.ok()) << weights;
    o.methods = &methods_;
    RoutedRun r = RunRouter(policy, a, o);
    EXPECT_TRUE(r.status.ok()) << policy << ": " << r.status;
    return r;
  }

  Registry methods_;
  const Factory<AttentionRouter>* factory_ = nullptr;
};
INSTANTIATE_TEST_SUITE_P(All, AttentionRouters, testing::ValuesIn([] {
                           std::vector<Method> all;
                           for (const auto& [name, factory] : BuiltinRouters().attention)
                             all.push_back({name, false});
                           for (const auto& [name, factory] : PluginRouters().attention)
                             all.push_back({name, true});
                           return all;
                         }()),
                         [](const auto& info) {
                           return (info.param.plugin ? "plugin_" : "") + info.param.name;
                         });

AttentionData Data(int64_t kv, int64_t q, uint64_t seed, int64_t heads = 4, int64_t kv_heads = 2,
                   int64_t dv = 24) {
  return MakeAttentionData(DataKind::kNeedles, kv, q, heads, kv_heads, 32, dv, seed);
}
void ExpectNear(const std::vector<float>& got, const std::vector<float>& want, float tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance) << i;
}

TEST_P(AttentionRouters, FullBudgetIsDense) {
  if (!traits().exact_at_full_budget) GTEST_SKIP() << "not exact at any budget, as its traits say";
  for (auto [kv, q, heads, kv_heads, dv] : {std::array<int64_t, 5>{300, 300, 4, 2, 24},
                                            {130, 1, 4, 1, 32},
                                            {1, 1, 2, 2, 16},
                                            {257, 65, 6, 2, 40}}) {
    const AttentionData a = Data(kv, traits().bidirectional ? kv : q, 1, heads, kv_heads, dv);
    const RoutedRun full = Run(Full(), a);
    EXPECT_DOUBLE_EQ(full.counters.density(), 1);
    if (traits().bidirectional) {
      const std::vector<double> want = attention::reference::WithoutMask(a.Inputs());
      ExpectNear(full.o, {want.begin(), want.end()}, 2e-5f);
      EXPECT_EQ(full.counters.exact_pairs, heads * kv * kv);
      continue;
    }
    const RoutedRun want = RunRouter("dense", a);
    ExpectNear(full.o, want.o, 2e-5f);
    EXPECT_EQ(full.counters.exact_pairs, want.counters.exact_pairs) << kv << " keys, " << q;
  }
}
TEST_P(AttentionRouters, SkipsAtASmallBudget) {
  const AttentionData a = Data(320, 320, 2);
  HarnessOptions o;
  o.chunk = Chunk(64);
  const RoutedRun r = Run(Small(), a, o);
  if (*traits().small_budget != 0) {
    EXPECT_LT(r.counters.density(), 0.75);
  }
  // What the executor counts is what the lists say, but for pairs that a stop rule left out.
  int64_t pairs = 0;
  for (const auto& list : r.lists) {
    pairs += std::ssize(list);
    if (r.one_softmax) {
      EXPECT_EQ(std::ranges::adjacent_find(list), list.end()) << "a key is listed twice";
    }
  }
  EXPECT_LE(r.counters.exact_pairs, pairs);
  if (r.counters.stopped_panels == 0) {
    EXPECT_EQ(r.counters.exact_pairs, pairs);
  }
}
TEST_P(AttentionRouters, NeverLooksAhead) {
  if (traits().bidirectional) GTEST_SKIP() << "no causal mask, as its traits say";
  const int64_t t = 150;
  AttentionData a = Data(260, 260, 3);
  const RoutedRun before = Run(Small(), a);
  for (int64_t s = t + 1; s < 260; ++s) {
    for (int64_t x = 0; x < 2 * 32; ++x) a.k[s * 64 + x] += 3;
    for (int64_t x = 0; x < 2 * 24; ++x) a.v[s * 48 + x] -= 2;
  }
  const RoutedRun after = Run(Small(), a);
  for (int64_t i = 0; i < 260; ++i) {
    for (int64_t h = 0; h < 4; ++h) {
      const auto& list = after.lists[i * 4 + h];
      EXPECT_TRUE(list.empty() || list.back() <= i)
          << "query " << i << " attends to " << list.back();
      if (i > t || !traits().token_causal) continue;
      EXPECT_EQ(list, before.lists[i * 4 + h]) << "query " << i;
    }
    for (int64_t x = 0; x < 4 * 24 && i <= t && traits().token_causal; ++x)
      EXPECT_EQ(after.o[i * 96 + x], before.o[i * 96 + x]);
  }
}
TEST_P(AttentionRouters, SameBitsForAnyThreadCount) {
  const AttentionData a = Data(300, 300, 4);
  HarnessOptions one;
  one.chunk = Chunk(128);
  HarnessOptions four = one;
  four.threads = 4;
  const RoutedRun x = Run(Small(), a, one);
  const RoutedRun y = Run(Small(), a, four);
  EXPECT_EQ(x.o, y.o);
  EXPECT_EQ(x.lists, y.lists);
}
TEST_P(AttentionRouters, ExecutorModesAgree) {
  const AttentionData a = Data(300, 300, 5);
  const RoutedRun want = Run(Small(), a);
  for (AttendOptions attend : {AttendOptions{.mode = AttendMode::kKvMajor},
                               AttendOptions{.token_group = 1}, AttendOptions{.token_group = 16}}) {
    HarnessOptions o;
    o.attend = attend;
    o.methods = &methods_;
    const RoutedRun r = RunRouter(Small(), a, o);
    if (r.status.code() == absl::StatusCode::kUnimplemented) continue;  // no KV-major form
    ASSERT_TRUE(r.status.ok()) << r.status;
    ExpectNear(r.o, want.o, 2e-5f);
  }
}
TEST_P(AttentionRouters, ChunksGiveTheListsOfOneCall) {
  if (!traits().chunk_invariant) GTEST_SKIP() << "lists depend on the call, as its traits say";
  const AttentionData a = Data(320, 320, 6);
  HarnessOptions chunked;
  chunked.chunk = 64;
  const RoutedRun x = Run(Small(), a);
  const RoutedRun y = Run(Small(), a, chunked);
  EXPECT_EQ(x.lists, y.lists);
  ExpectNear(x.o, y.o, 2e-5f);
}
// A prompt and then single tokens give every token the list that it has where all come as single
// tokens from the same place on.
TEST_P(AttentionRouters, DecodeContinuesAPrefill) {
  if (!traits().chunk_invariant) GTEST_SKIP() << "lists depend on the call, as its traits say";
  const AttentionData a = Data(200, 200, 7);
  HarnessOptions late;
  late.first_chunk = 128;
  late.chunk = 1;
  HarnessOptions early = late;
  early.first_chunk = 64;
  const RoutedRun x = Run(Small(), a, late);
  const RoutedRun y = Run(Small(), a, early);
  for (int64_t i = 128 * 4; i < 200 * 4; ++i) EXPECT_EQ(x.lists[i], y.lists[i]) << i / 4;
  if (traits().token_causal) {  // then a step's list is also that of the whole prompt
    const RoutedRun whole = Run(Small(), a);
    EXPECT_EQ(whole.lists, x.lists);
  }
}
// Half-precision keys: the lists are those of the same numbers in fp32.
TEST_P(AttentionRouters, HalfPrecisionKeysGiveTheSameLists) {
  for (DType t : {DType::kBF16, DType::kF16}) {
    AttentionData a = Data(260, 260, 8);
    a.Convert(t);
    HarnessOptions o;
    o.attend.bf16 = kernels::Bf16Unit::kNone;
    if (traits().feedback != 0) o.chunk = 128;  // they skip what earlier calls had no use for
    const RoutedRun r = Run(Small(), a, o);
    AttentionData f = a;
    f.dtype = DType::kF32;
    const RoutedRun want = Run(Small(), f, o);
    EXPECT_EQ(r.lists, want.lists);
    ExpectNear(r.o, want.o, 2e-5f);
    EXPECT_LT(want.counters.exact_pairs,
              want.counters.causal_pairs + (*traits().small_budget == 0));
  }
}
TEST_P(AttentionRouters, TruncatedStateEqualsAFreshOne) {
  const AttentionData a = Data(200, 200, 9);
  AttentionData other = Data(200, 200, 10);
  const auto run = [&](bool detour) {
    SessionOptions s = HarnessSession(Small(), a, {});
    s.max_queries = 200;
    EXPECT_TRUE(WithSyntheticWeights(Small(), kShape, 7, methods_).ok());
    s.methods = &methods_;
    auto session = *AttentionSession::Create(s);
    std::vector<float> o(200 * 4 * 24);
    const auto feed = [&](const AttentionData& data, int64_t at, int64_t n) {
      const absl::Status status =
          session->Run(0, ChunkOf(data.Inputs(), at, n), {.o = {o.data(), n, 4, 24, 96, 24}});
      EXPECT_TRUE(status.ok()) << status;
    };
    feed(a, 0, 128);
    if (detour) {  // other tokens for a while, then back
      std::copy(a.k.begin(), a.k.begin() + 128 * 64, other.k.begin());
      std::copy(a.v.begin(), a.v.begin() + 128 * 48, other.v.begin());
      feed(other, 128, 72);
      session->Truncate(128);
      EXPECT_LE(session->known_keys(0), 128);
    }
    feed(a, 128, 64);
    o.resize(64 * 4 * 24);  // the last chunk's
    return o;
  };
  if (traits().feedback != 0) GTEST_SKIP() << "what was learned from feedback is not taken back";
  if (traits().bidirectional) GTEST_SKIP() << "takes all tokens in one call";
  EXPECT_EQ(run(true), run(false));
}
TEST_P(AttentionRouters, RunDoesNotAllocate) {
  const AttentionData a = Data(256, 256, 9);
  EXPECT_TRUE(WithSyntheticWeights(Small(), kShape, 7, methods_).ok());
  auto router = methods_.attention.Create(Small());
  ASSERT_TRUE(router.ok()) << router.status();
  auto plan = (*router)->MakePlan(kShape);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const AttentionPlanInfo& info = (*plan)->info();
  OwnedWorkspace ws(info.workspace_bytes), layer(info.state_bytes), sequence(info.sequence_bytes);
  auto storage = *PlanStorage::Create(info.layout);
  InlineExecutor ex;
  RouterState state = {layer.data(), sequence.data(), 0};
  AttentionInputs in = a.Inputs();
  in.layer = 0;
  std::vector<float> lse(256 * 4, 1.0f);
  for (int pass = 0; pass < 2; ++pass) {
    for (in.stage = 0; in.stage < traits().stages; ++in.stage) {
      if (in.stage > 0) in.attended_lse = {lse.data(), 256, 4, 4};
      const int64_t before = AllocationCount();
      const absl::Status s = (*router)->Run(**plan, in, state, {ws.workspace(), &ex}, *storage);
      storage->plan();
      const int64_t allocations = AllocationCount() - before;
      EXPECT_TRUE(s.ok()) << s;
      EXPECT_EQ(allocations, 0);
    }
  }
}
TEST_P(AttentionRouters, ObeysItsTraits) {
  const AttentionTraits& t = traits();
  EXPECT_EQ(GetParam().name, t.name);
  EXPECT_GE(t.stages, 1);
  EXPECT_EQ(*t.title == 0, *t.arxiv == 0) << "a paper has a title and an id";
  // What it does not say it reads, it does not need.
  AttentionData a = Data(200, 200, 11);
  HarnessOptions bare;
  bare.methods = &methods_;
  bare.adjust = [&](SessionOptions& s, AttentionInputs& in) {
    if (!t.reads_pre_rope) {
      in.q_pre = {};
      in.k_pre = {};
    }
    if (!t.reads_hidden) {
      in.hidden = {};
      s.width = 0;
    }
  };
  AttentionShape shape = kShape;
  shape.max_queries = shape.max_kv = 200;
  if (!t.reads_hidden) shape.width = 0;
  ASSERT_TRUE(WithSyntheticWeights(Small(), shape, 7, methods_).ok());
  const RoutedRun r = RunRouter(Small(), a, bare);
  EXPECT_TRUE(r.status.ok()) << r.status;
  // Values that it does not read do not change its lists.
  if (!t.reads_values && t.feedback == 0) {
    for (float& x : a.v) x = -x + 1;
    EXPECT_EQ(RunRouter(Small(), a, bare).lists, r.lists);
  }
}
TEST_P(AttentionRouters, ScatteredQueriesAreTakenOrRefused) {
  const AttentionData a = Data(200, 200, 12);
  ASSERT_TRUE(WithSyntheticWeights(Small(), kShape, 7, methods_).ok());
  SessionOptions s = HarnessSession(Small(), a, {});
  s.methods = &methods_;
  auto session = *AttentionSession::Create(s);
  AttentionInputs in = a.Inputs();
  std::vector<int32_t> positions;
  for (int32_t i = 0; i < 100; ++i) positions.push_back(2 * i);
  in.q.rows = 100;
  if (!in.q_pre.empty()) in.q_pre.rows = 100;
  in.hidden.rows = 100;
  in.q_positions = positions;
  std::vector<float> o(100 * 4 * 24);
  const absl::Status status = session->Run(0, in, {.o = {o.data(), 100, 4, 24, 96, 24}});
  EXPECT_EQ(status.ok(), traits().scattered_queries) << status;
  if (!traits().scattered_queries) {
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("contiguous queries only"));
  }
}
TEST_P(AttentionRouters, ErrorsAreClear) {
  ASSERT_TRUE(WithSyntheticWeights(Small(), kShape, 7, methods_).ok());
  auto router = *methods_.attention.Create(Small());
  AttentionShape bad = kShape;
  bad.max_queries = 0;
  EXPECT_FALSE(router->MakePlan(bad).ok());
  bad = kShape;
  bad.heads = 3;
  EXPECT_FALSE(router->MakePlan(bad).ok());
  AttentionShape tight = kShape;
  tight.max_queries = 16;
  tight.max_kv = 64;
  auto plan = router->MakePlan(tight);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const AttentionData a = Data(100, 100, 1);
  auto storage = *PlanStorage::Create((*plan)->info().layout);
  InlineExecutor ex;
  RouterState state;
  const absl::Status s = router->Run(**plan, a.Inputs(), state, {{}, &ex}, *storage);
  EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(s.message()), testing::HasSubstr("planned for at most"));
  auto unknown = methods_.attention.Create(Policy("no_such_key=1"));
  EXPECT_THAT(std::string(unknown.status().message()),
              testing::HasSubstr("unknown key 'no_such_key'"));
  if (!factory_->learned()) {
    EXPECT_FALSE(methods_.attention.Create(GetParam().name + ":weights=x").ok());
    return;
  }
  // Its config alone may do; where it does not, weights are asked for.
  const absl::Status bare = methods_.attention.Create(GetParam().name).status();
  if (!bare.ok()) EXPECT_THAT(std::string(bare.message()), testing::HasSubstr("weights=FILE"));
}
TEST_P(AttentionRouters, BudgetsReadAndHelpIsThere) {
  for (const char* budget : {traits().full_budget, traits().small_budget}) {
    ASSERT_TRUE(WithSyntheticWeights(Policy(budget), kShape, 7, methods_).ok());
    EXPECT_TRUE(methods_.attention.Create(Policy(budget)).ok()) << budget;
  }
  EXPECT_FALSE(factory_->Describe().empty());
}
// The same bits out of a plug-in.
TEST_P(AttentionRouters, ThroughTheAbiTheSameBits) {
  if (!GetParam().plugin) GTEST_SKIP() << "compared in its plug-in's turn";
  const AttentionData a = Data(300, 300, 13);
  HarnessOptions o;
  o.chunk = Chunk(128);
  const RoutedRun outside = Run(Small(), a, o);
  HarnessOptions inside = o;
  inside.weights_seed = 7;
  const RoutedRun want = RunRouter(Small(), a, inside);
  ASSERT_TRUE(want.status.ok()) << want.status;
  EXPECT_EQ(outside.o, want.o);
  EXPECT_EQ(outside.lists, want.lists);
}
}  // namespace
SLUICE_END_NAMESPACE
