#include "sluice/routers/attention/infinite_hip/infinite_hip.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/infinite_hip/infinite_hip_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace infinite_hip_test {
using attention::InfiniteHipReference;
struct Rule {
  const char* text;
  InfiniteHipReference reference;
};
// Refreshes of 1, so that a reference that remembers nothing is one of decode too.
const Rule kRules[] = {
    {"stages=16/64/2/1;4/32/1/1,block_q=16,sink=4,window=16",
     {.stages = {{16, 64, 2}, {4, 32, 1}}, .block_q = 16, .sink = 4, .window = 16}},
    {"stages=64/128/5/1;32/64/4/1;1/17/3/1,block_q=64,sink=5,window=33,share=group",
     {.stages = {{64, 128, 5}, {32, 64, 4}, {1, 17, 3}}, .sink = 5, .window = 33, .shared = -1}},
    {"stages=8/24/1/1,block_q=7,sink=0,window=1,share=head",
     {.stages = {{8, 24, 1}}, .block_q = 7, .sink = 0, .window = 1, .shared = 1}},
    {"stages=12/48/64/1;12/24/1/1;6/12/2/1,block_q=32,sink=16,window=20",
     {.stages = {{12, 48, 64}, {12, 24, 1}, {6, 12, 2}}, .block_q = 32, .sink = 16, .window = 20}},
    {"stages=256/32768/4/1;32/8192/4/1;8/2048/1/1", {}},
    {"stages=8/1024/1/1,sink=3,window=9", {.stages = {{8, 1024, 1}}, .sink = 3, .window = 9}},
};
std::string Policy(const Rule& rule) { return absl::StrCat("infinite_hip:", rule.text); }
InfiniteHipReference For(const Rule& rule, const AttentionData& a) {
  InfiniteHipReference r = rule.reference;
  if (r.shared < 0) r.shared = a.heads / a.kv_heads;
  return r;
}
void ExpectLists(const AttentionData& a, const HarnessOptions& o = {}) {
  for (const Rule& rule : kRules) ExpectListsOf(For(rule, a), Policy(rule), a, o);
}

TEST(InfiniteHip, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) ExpectLists(c.Data(1), c.Options());
  // More chunks than are halved together.
  ExpectLists(MakeAttentionData(DataKind::kNeedles, 900, 9, 2, 1, 32, 24, 2));
}
// Of means that are exact in single precision too: of one or two queries.
TEST(InfiniteHip, TiesGoLeftAndToTheFirstChunk) {
  for (int64_t q : {96, 1}) {
    const AttentionData a =
        WithTies(MakeAttentionData(DataKind::kGaussian, 333, q, 4, 2, 16, 24, 2), 16);
    for (int i : {0, 2, 5}) ExpectListsOf(For(kRules[i], a), Policy(kRules[i]), a);
  }
}
TEST(InfiniteHip, NanAndInfiniteScoresAreNotSelected) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 100, 4, 2, 32, 24, 3);
  a.q[5 * 4 * 32] = NAN;
  for (int64_t s = 0; s < 300; s += 3) a.k[s * 2 * 32] = NAN;
  for (int64_t s = 60; s < 120; ++s) a.k[(s * 2 + 1) * 32] = NAN;
  ExpectLists(a);
}
// Chunks of one key: the flat best of the highest products, counted here anew.
TEST(InfiniteHip, ChunksOfOneKeyAreTheFlatTopK) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 48, 4, 2, 32, 24, 4);
  const RoutedRun r =
      RunRouter("infinite_hip:stages=1/20/1/1,block_q=16,sink=4,window=16,share=head", a);
  ASSERT_TRUE(r.status.ok()) << r.status;
  for (int64_t head = 0; head < 4; ++head) {
    for (int64_t tile = 0; tile < 3; ++tile) {
      const int64_t first = a.q_begin() + tile * 16;
      std::vector<std::pair<double, int64_t>> best;
      for (int64_t s = 4; s < first - 15; ++s) {
        double most = -HUGE_VAL;
        for (int64_t i = tile * 16; i < tile * 16 + 16; ++i) {
          double sum = 0;
          for (int64_t x = 0; x < 32; ++x)
            sum += double{a.q[(i * 4 + head) * 32 + x]} * double{a.k[(s * 2 + head / 2) * 32 + x]};
          most = std::max(most, sum);
        }
        best.emplace_back(-most, s);
      }
      std::sort(best.begin(), best.end());
      std::vector<uint32_t> want = {0, 1, 2, 3};
      for (int64_t i = 0; i < 20; ++i) want.push_back(static_cast<uint32_t>(best[i].second));
      for (int64_t s = first - 15; s <= first; ++s) want.push_back(static_cast<uint32_t>(s));
      std::sort(want.begin(), want.end());
      EXPECT_EQ(r.lists[tile * 16 * 4 + head], want) << head << " " << tile;
    }
  }
}
// A spike in the centre of a chunk is always found; beside it, only when the centres show the way.
TEST(InfiniteHip, FindsASpikeInTheCentre) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 1040, 16, 1, 1, 32, 32, 1);
  for (float& x : a.k) x *= 0.01f;
  const auto keeps = [&](std::vector<int64_t> spikes, uint32_t s) {
    AttentionData b = a;
    for (int64_t at : spikes) {
      for (int64_t x = 0; x < 32; ++x) b.k[at * 32 + x] = a.q[x] * 2;
    }
    const RoutedRun r =
        RunRouter("infinite_hip:stages=64/64/1/1;64/64/1/1,block_q=16,sink=16,window=16", b);
    EXPECT_TRUE(r.status.ok()) << r.status;
    return std::binary_search(r.lists[0].begin(), r.lists[0].end(), s);
  };
  for (int64_t chunk = 16; chunk + 64 < 1009; chunk += 64)
    EXPECT_TRUE(keeps({chunk + 32}, static_cast<uint32_t>(chunk + 33))) << chunk;
  // Chunk [528, 592): centres 560, then 544 and 576, then of the left half 536 and 552.
  EXPECT_TRUE(keeps({544}, 528));
  EXPECT_TRUE(keeps({576}, 528));
  EXPECT_FALSE(keeps({561}, 528));
}
TEST(InfiniteHip, RefreshOneRemembersNothing) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 330, 40, 4, 2, 32, 24, 5);
  HarnessOptions steps;
  steps.chunk = 1;
  ExpectLists(a, steps);
}
// Steps follow a prompt; every stage is planned at multiples of its refresh.
TEST(InfiniteHip, StagesAreReusedAsLongAsTheySay) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 340, 60, 4, 2, 32, 24, 6);
  HarnessOptions o;
  o.first_chunk = 20;
  o.chunk = 1;
  for (const char* share : {"all", "group", "head"}) {
    for (const auto& [text, stages] :
         {std::pair<const char*, std::vector<InfiniteHipReference::Stage>>{
              "16/96/1/12;8/48/1/4;4/24/1/2", {{16, 96, 1, 12}, {8, 48, 1, 4}, {4, 24, 1, 2}}},
          {"16/96/1/8;4/24/1/1", {{16, 96, 1, 8}, {4, 24, 1, 1}}},
          {"8/32/1/5", {{8, 32, 1, 5}}}}) {
      const std::string policy =
          absl::StrCat("infinite_hip:stages=", text, ",block_q=16,sink=4,window=16,share=", share);
      const RoutedRun r = RunRouter(policy, a, o);
      ASSERT_TRUE(r.status.ok()) << r.status;
      const InfiniteHipReference reference = {.stages = stages,
                                              .block_q = 16,
                                              .sink = 4,
                                              .window = 16,
                                              .shared = share == std::string("all")     ? 0
                                                        : share == std::string("group") ? 2
                                                                                        : 1};
      InfiniteHipReference::Memory memory;
      for (int64_t i = 20; i < 60; ++i) {
        const auto want = reference.Step(ChunkOf(a.Inputs(), i, 1), memory);
        for (int64_t h = 0; h < 4; ++h)
          ASSERT_EQ(r.lists[i * 4 + h], want[h]) << policy << ": step " << i - 20 << ", " << h;
      }
    }
  }
}
// One refresh for all stages is the composition of that name.
TEST(InfiniteHip, OneRefreshForAllStagesIsTheCompositions) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 340, 60, 4, 2, 32, 24, 7);
  HarnessOptions o;
  o.first_chunk = 20;
  o.chunk = 1;
  const std::string rest = ",block_q=16,sink=4,window=16";
  const RoutedRun own = RunRouter("infinite_hip:stages=16/96/1/6;4/24/1/6" + rest, a, o);
  const RoutedRun composed =
      RunRouter("refresh(6 | infinite_hip:stages=16/96/1/1;4/24/1/1" + rest + ")", a, o);
  const RoutedRun fresh = RunRouter("infinite_hip:stages=16/96/1/1;4/24/1/1" + rest, a, o);
  ASSERT_TRUE(own.status.ok()) << own.status;
  ASSERT_TRUE(composed.status.ok()) << composed.status;
  EXPECT_EQ(own.lists, composed.lists);
  EXPECT_NE(own.lists, fresh.lists);
}
// After tokens were taken back, or a prompt came in between, a step plans all stages.
TEST(InfiniteHip, ForgetsWhatNoLongerFollows) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 340, 60, 4, 2, 32, 24, 8);
  const std::string policy = "infinite_hip:stages=4/24/1/100,block_q=16,sink=4,window=16";
  SessionOptions s = HarnessSession(policy, a, {});
  auto session = *AttentionSession::Create(s);
  std::vector<std::vector<uint32_t>> lists;
  session->OnPlan([&](int, const AttentionPlan& plan, const AttentionInputs&, double) {
    std::vector<uint32_t> list;
    ForEachPair(plan, plan.branches[0], 0, 0,
                [&](int64_t key, int, double) { list.push_back(static_cast<uint32_t>(key)); });
    lists.push_back(list);
  });
  std::vector<float> o(60 * 4 * 24);
  const auto feed = [&](int64_t at, int64_t n) {
    const absl::Status status =
        session->Run(0, ChunkOf(a.Inputs(), at, n), {.o = {o.data(), n, 4, 24, 96, 24}});
    EXPECT_TRUE(status.ok()) << status;
    return lists.back();
  };
  const InfiniteHipReference reference = {
      .stages = {{4, 24, 1}}, .block_q = 16, .sink = 4, .window = 16};
  const auto fresh = [&](int64_t at) { return reference.Lists(ChunkOf(a.Inputs(), at, 1))[0]; };
  feed(0, 20);
  EXPECT_EQ(feed(20, 1), fresh(20));
  feed(21, 1);
  EXPECT_NE(feed(22, 1), fresh(22));
  session->Truncate(280 + 22);
  EXPECT_EQ(feed(22, 1), fresh(22));
  EXPECT_NE(feed(23, 1), fresh(23));
  feed(24, 10);
  EXPECT_EQ(feed(34, 1), fresh(34));
}
TEST(InfiniteHip, SettingsThatMakeNoSenseAreRefused) {
  for (const char* bad :
       {"16/64/2", "16/64/2/1/1", "16/8/1/1", "16/40/1/1", "0/64/1/1", "16/64/0/1", "16/64/1/0",
        "16/64/1/x", "16/64/1/1;5/20/1/1", "4/64/1/1;16/32/1/1", "16/64/1/4;4/32/1/8", "",
        "1/1/1/1;1/1/1/1;1/1/1/1;1/1/1/1;1/1/1/1;1/1/1/1;1/1/1/1;1/1/1/1;1/1/1/1"}) {
    const auto made = BuiltinRouters().attention.Create(absl::StrCat("infinite_hip:stages=", bad));
    EXPECT_FALSE(made.ok()) << bad;
    EXPECT_THAT(std::string(made.status().message()), testing::HasSubstr("stages")) << bad;
  }
}
}  // namespace infinite_hip_test
SLUICE_END_NAMESPACE
