#include "sluice/routers/attention/spatten/spatten.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "sluice/routers/attention/spatten/spatten_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace spatten_test {
using Lists = std::vector<std::vector<uint32_t>>;  // [query * heads + head]
constexpr int kLayers = 5;
constexpr int64_t kHeads = 4;
constexpr int64_t kDim = 16;

// A stack of layers, each with queries, keys and values of its own, run through a session.
class Stack {
 public:
  explicit Stack(const std::string& policy, int64_t tokens = 160, uint64_t seed = 1) {
    for (uint64_t l = 0; l < kLayers; ++l)
      data_.push_back(
          MakeAttentionData(DataKind::kNeedles, tokens, tokens, kHeads, 2, kDim, kDim, seed + l));
    SessionOptions s = HarnessSession(policy, data_[0], {});
    s.layers = kLayers;
    auto made = AttentionSession::Create(s);
    EXPECT_TRUE(made.ok()) << made.status();
    session_ = *std::move(made);
    session_->OnPlan([this](int layer, const AttentionPlan& p, const AttentionInputs&, double) {
      EXPECT_TRUE(ValidateAttentionPlan(p).ok()) << ValidateAttentionPlan(p);
      Lists& lists = lists_[layer];
      lists.assign(p.q_count * kHeads, {});
      for (int64_t i = 0; i < p.q_count * kHeads; ++i) {
        ForEachPair(p, p.branches[0], i / kHeads, i % kHeads, [&](int64_t key, int, double) {
          lists[i].push_back(static_cast<uint32_t>(key));
        });
      }
    });
  }
  // The inputs of a call, by layer.
  std::vector<AttentionInputs> Call(int64_t at, int64_t n) const {
    std::vector<AttentionInputs> layers;
    for (const AttentionData& a : data_) layers.push_back(ChunkOf(a.Inputs(), at, n));
    return layers;
  }
  // The lists of a call, by layer.
  std::vector<Lists> Feed(int64_t at, int64_t n) {
    lists_.assign(kLayers, {});
    o_.assign(kLayers, std::vector<float>(n * kHeads * kDim));
    const std::vector<AttentionInputs> call = Call(at, n);
    for (int l = 0; l < kLayers; ++l) {
      const absl::Status s =
          session_->Run(l, call[l], {.o = {o_[l].data(), n, kHeads, kDim, kHeads * kDim, kDim}});
      EXPECT_TRUE(s.ok()) << s;
    }
    return lists_;
  }
  const std::vector<std::vector<float>>& o() const { return o_; }
  AttentionSession& session() { return *session_; }

 private:
  std::vector<AttentionData> data_;
  std::unique_ptr<AttentionSession> session_;
  std::vector<Lists> lists_;
  std::vector<std::vector<float>> o_;
};

struct Case {
  const char* policy;
  SpattenReference reference;
};
std::vector<Case> Cases() {
  const std::vector<double> all(kLayers, 1.0);
  return {
      {"spatten:keep_first=0.8,keep_last=0.2", {{0.8, 0.65, 0.5, 0.35, 0.2}, all}},
      {"spatten:keep_first=0.8,keep_last=0.2,carry=all", {{0.8, 0.65, 0.5, 0.35, 0.2}, all, true}},
      {"spatten:keep_first=0.6,keep_last=0.3,from_layer=2,heads_first=0.75,heads_last=0.25",
       {{1, 1, 0.6, 0.45, 0.3}, {1, 1, 0.75, 0.5, 0.25}}},
      {"spatten:schedule=gpt2", {{0.9, 0.7, 0.2, 0.2, 0.2}, all}},
      {"spatten:keep_first=0,keep_last=0", {{0, 0, 0, 0, 0}, all}},
  };
}
// A prompt in two chunks and then steps, every layer's lists against plain loops.
TEST(Spatten, EveryLayerSeesWhatTheReferenceLeaves) {
  for (Case& c : Cases()) {
    SCOPED_TRACE(c.policy);
    Stack stack(c.policy);
    int64_t at = 0;
    for (int64_t n : {100, 40, 1, 1, 1, 1, 1, 1, 1, 1}) {
      const auto want = c.reference.Feed(stack.Call(at, n));
      const auto got = stack.Feed(at, n);
      for (int l = 0; l < kLayers; ++l) ASSERT_EQ(got[l], want[l]) << "layer " << l << " at " << at;
      at += n;
    }
  }
}
TEST(Spatten, KeepingEverythingIsDense) {
  Stack all("spatten:keep_first=1,keep_last=1");
  Stack dense("dense");
  for (auto [at, n] : {std::pair<int64_t, int64_t>{0, 90}, {90, 1}, {91, 50}}) {
    EXPECT_EQ(all.Feed(at, n), dense.Feed(at, n));
    EXPECT_EQ(all.o(), dense.o());
  }
}
TEST(Spatten, AliveSetsAreNestedAndLayersSkipMoreAndMore) {
  Stack stack("spatten:keep_first=0.8,keep_last=0.1,heads_first=1,heads_last=0.5", 513);
  const auto prompt = stack.Feed(0, 512);
  for (int l = 1; l < kLayers; ++l) {
    for (size_t i = 0; i < prompt[l].size(); ++i)
      EXPECT_TRUE(std::ranges::includes(prompt[l - 1][i], prompt[l][i])) << "layer " << l;
    EXPECT_LT(stack.session().counters(l).exact_pairs, stack.session().counters(l - 1).exact_pairs);
    EXPECT_LT(stack.session().counters(l).macs, stack.session().counters(l - 1).macs);
  }
  // What the last layer left, and the new token, is what a step begins with.
  const auto step = stack.Feed(512, 1);
  EXPECT_EQ(step[0][0].size(), 51u + 1);  // 0.1 * 512
  EXPECT_EQ(step[0][0].back(), 512u);
}
TEST(Spatten, PrunedHeadsAttendNothingAndGiveNothing) {
  Stack stack("spatten:keep_first=1,keep_last=1,heads_first=0.5,heads_last=0.5");
  const auto lists = stack.Feed(0, 64);
  int64_t gone = 0;
  for (int64_t h = 0; h < kHeads; ++h) {
    EXPECT_FALSE(lists[0][h].empty());
    EXPECT_EQ(lists[1][h].empty(), lists[4][h].empty());
    if (!lists[1][h].empty()) continue;
    ++gone;
    for (int64_t x = 0; x < kDim; ++x) EXPECT_EQ(stack.o()[1][h * kDim + x], 0);
  }
  EXPECT_EQ(gone, 2);
  EXPECT_FALSE(stack.Feed(64, 1)[0][0].empty());  // the next pass begins with all heads
}
TEST(Spatten, ClearForgetsEverythingAndTruncateWhatIsBehindTheCut) {
  const std::string policy = "spatten:keep_first=0.8,keep_last=0.3,heads_first=1,heads_last=0.5";
  Stack stack(policy);
  const auto first = stack.Feed(0, 96);
  const auto second = stack.Feed(96, 1);
  stack.session().Clear();
  EXPECT_EQ(stack.Feed(0, 96), first);
  EXPECT_EQ(stack.Feed(96, 1), second);

  for (bool told : {true, false}) {  // a host may also just feed other tokens over the old ones
    Stack cut(policy);
    SpattenReference reference{{0.8, 0.675, 0.55, 0.425, 0.3}, {1, 0.875, 0.75, 0.625, 0.5}};
    for (auto [at, n] : {std::pair<int64_t, int64_t>{0, 96}, {96, 8}}) {
      cut.Feed(at, n);
      reference.Feed(cut.Call(at, n));
    }
    if (told) cut.session().Truncate(70);
    reference.Truncate(70);
    for (auto [at, n] : {std::pair<int64_t, int64_t>{70, 30}, {100, 1}, {101, 1}}) {
      const auto got = cut.Feed(at, n);
      const auto want = reference.Feed(cut.Call(at, n));
      for (int l = 0; l < kLayers; ++l) ASSERT_EQ(got[l], want[l]) << "layer " << l << " at " << at;
    }
  }
}
// Unpruned, every query and head of every layer gives away one in all; equal importance keeps the
// lowest tokens; what was cut has none left.
TEST(Spatten, ImportanceSumsToHeadsTimesQueriesTimesLayers) {
  const AttentionShape shape = {.max_queries = 32,
                                .max_kv = 32,
                                .heads = 4,
                                .kv_heads = 2,
                                .head_dim = 16,
                                .value_dim = 16,
                                .layers = kLayers};
  const auto router = *attention::Spatten::Create({.keep_first = 1, .keep_last = 0.25});
  const auto plan = *router.MakePlan(shape);
  OwnedWorkspace layers[kLayers], sequence(plan.sequence_bytes);
  auto storage = *PlanStorage::Create(plan.layout);
  InlineExecutor alone;
  const std::vector<float> mass(4 * 32, 1.0f), norm(4, 1.0f);
  RouterState state;
  for (int l = 0; l < kLayers; ++l) {
    layers[l].Resize(plan.state_bytes);
    state = {layers[l].data(), sequence.data(), 0};
    AttentionInputs in = MakeAttentionData(DataKind::kGaussian, 32, 32, 4, 2, 16, 16, 1).Inputs();
    in.layer = l;
    ASSERT_TRUE(router.Run(plan, in, state, {{}, &alone}, *storage).ok());
    // As if each of 32 queries gave each key an equal share.
    ASSERT_TRUE(router
                    .Observe(plan,
                             {.q_count = 32,
                              .kv_len = 32,
                              .layer = l,
                              .heads = 4,
                              .kv_heads = 2,
                              .key_mass = mass.data(),
                              .head_norm = norm.data()},
                             state)
                    .ok());
  }
  const double* importance = attention::Spatten::Importance(plan, state);
  EXPECT_DOUBLE_EQ(std::accumulate(importance, importance + 32, 0.0), 4 * 32 * kLayers);
  router.Truncate(plan, state, 20);
  EXPECT_DOUBLE_EQ(std::accumulate(importance, importance + 32, 0.0), 4 * 20 * kLayers);

  AttentionInputs step = MakeAttentionData(DataKind::kGaussian, 21, 1, 4, 2, 16, 16, 1).Inputs();
  step.layer = 0;
  state.layer = layers[0].data();
  ASSERT_TRUE(router.Run(plan, step, state, {{}, &alone}, *storage).ok());
  std::vector<uint32_t> list;
  ForEachPair(storage->plan(), storage->plan().branches[0], 0, 0,
              [&](int64_t key, int, double) { list.push_back(static_cast<uint32_t>(key)); });
  EXPECT_THAT(list, testing::ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 20));
}
TEST(Spatten, RefusesWhatItCannotDo) {
  EXPECT_THAT(std::string(BuiltinRouters()
                              .attention.Create("spatten:schedule=gpt2,keep_last=0.5")
                              .status()
                              .message()),
              testing::HasSubstr("schedule=linear"));
  for (const char* absent : {"spatten:value_keep=0.2", "spatten:key_bits=6"})
    EXPECT_FALSE(BuiltinRouters().attention.Create(absent).ok()) << absent;
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 20, 20, 4, 2, 16, 16, 1);
  HarnessOptions unknown;
  unknown.layer = -1;
  const absl::Status s = RunRouter("spatten", a, unknown).status;
  EXPECT_EQ(s.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(s.message()), testing::HasSubstr("which layer asks"));
}
}  // namespace spatten_test
SLUICE_END_NAMESPACE
