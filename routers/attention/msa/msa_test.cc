#include "sluice/routers/attention/msa/msa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/msa/msa_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/random_weights.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace msa_test {
struct Rule {
  const char* text;
  attention::MsaReference reference;
};
const Rule kRules[] = {
    {"block=16,k=4", {.block = 16, .k = 4}},
    {"block=8,k=9,sink=1,local=2,tile=64", {.block = 8, .k = 9, .sink = 1, .local = 2}},
    {"block=48,k=2,tile=1", {.block = 48, .k = 2}},
    {"block=16,k=1,tile=7", {.block = 16, .k = 1}},
    {"block=1,k=20", {.block = 1, .k = 20}},
    {"k=2147483648", {.k = int64_t{1} << 31}},
};
std::string Own(const Rule& rule) { return absl::StrCat("msa:index=own,", rule.text); }

// Methods that read random weights of a layer index of width 20, 8 of it rotated.
class Learned {
 public:
  explicit Learned(const AttentionData& a, int64_t key_heads)
      : weights_({{"layers", 4},
                  {"kv_heads", a.kv_heads},
                  {"key_heads", key_heads},
                  {"dim", 20},
                  {"rope_dim", 8},
                  {"width", a.width}}),
        data_(a),
        key_heads_(key_heads) {
    EXPECT_TRUE(AddBuiltinRouters(methods_).ok());
    methods_.OpenWeightsWith(
        [w = weights_](const std::string&) -> absl::StatusOr<std::unique_ptr<const WeightSource>> {
          return std::unique_ptr<const WeightSource>(std::make_unique<RandomWeights>(w));
        });
  }
  static std::string Policy(const Rule& rule) { return absl::StrCat("msa:weights=x,", rule.text); }
  HarnessOptions Options(HarnessOptions o) const {
    o.methods = &methods_;
    o.layer = 2;
    return o;
  }
  attention::MsaReference Reference(const Rule& rule) const {
    attention::MsaReference r = rule.reference;
    const auto read = [&](const char* name, std::vector<uint64_t> shape) {
      return *weights_.ReadF32(absl::StrCat("msa.2.", name), shape);
    };
    const uint64_t width = static_cast<uint64_t>(data_.width);
    r.query = read("query", {width, 20 * static_cast<uint64_t>(data_.kv_heads)});
    r.key = read("key", {width, 20 * static_cast<uint64_t>(key_heads_)});
    r.query_norm = read("query_norm", {20});
    r.key_norm = read("key_norm", {20});
    r.rope_dim = 8;
    r.hidden = data_.Inputs().hidden;
    r.hidden_begin = data_.q_begin();
    return r;
  }

 private:
  RandomWeights weights_;
  const AttentionData& data_;
  int64_t key_heads_;
  Registry methods_;
};

TEST(Msa, OwnListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (const Rule& rule : kRules) ExpectListsOf(rule.reference, Own(rule), a, c.Options());
  }
}
// With an index key for all groups and with one for each; keys that nobody indexed stand before
// many of the cases, and none before a prompt that comes whole in parts.
TEST(Msa, LearnedListsAreTheReferences) {
  std::vector<ReferenceCase> cases = ReferenceCases();
  cases.push_back(
      {.kind = DataKind::kGaussian, .kv = 290, .q = 290, .chunk = 70, .first_chunk = 33});
  for (const ReferenceCase& c : cases) {
    const AttentionData a = c.Data(1);
    for (int64_t key_heads : {int64_t{1}, a.kv_heads}) {
      const Learned learned(a, key_heads);
      for (const Rule& rule : kRules) {
        ExpectListsOf(learned.Reference(rule), Learned::Policy(rule), a,
                      learned.Options(c.Options()));
      }
    }
  }
}
// Each group looks for a key of its own, one head of the group alone asks for it.
TEST(Msa, EachGroupFindsItsBlock) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 400, 40, 4, 2, 32, 16, 2);
  for (int64_t i = 0; i < 40; ++i) {
    for (int64_t x = 0; x < 32; ++x) {
      a.q[(i * 4 + 0) * 32 + x] = 20 * a.k[(100 * 2 + 0) * 32 + x];
      a.q[(i * 4 + 3) * 32 + x] = 20 * a.k[(205 * 2 + 1) * 32 + x];
    }
  }
  const RoutedRun run = RunRouter("msa:index=own,block=16,k=2", a);
  ASSERT_TRUE(run.status.ok()) << run.status;
  for (int64_t i = 0; i < 40; ++i) {
    for (int64_t h = 0; h < 4; ++h) {
      const int64_t block = h < 2 ? 100 / 16 : 205 / 16;
      const int64_t position = 360 + i;
      EXPECT_EQ(run.lists[i * 4 + h],
                attention::reference::KeysOf({block, position / 16}, 16, position));
    }
  }
}
TEST(Msa, FullBudgetIsDenseToTheBit) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 300, 4, 2, 32, 24, 7);
  const RoutedRun dense = RunRouter("dense", a);
  for (const char* rest : {"index=own,tile=1", "index=own,tile=64", "weights=synthetic"}) {
    const RoutedRun full = RunRouter(absl::StrCat("msa:k=2147483648,", rest), a);
    ASSERT_TRUE(full.status.ok()) << full.status;
    EXPECT_EQ(full.lists, dense.lists) << rest;
    EXPECT_EQ(full.o, dense.o) << rest;
  }
}
TEST(Msa, TilesChangeNoList) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 300, 4, 2, 32, 24, 3);
  for (const char* index : {"index=own", "weights=synthetic"}) {
    const std::string policy = absl::StrCat("msa:block=16,k=3,", index, ",tile=");
    const RoutedRun one = RunRouter(policy + "1", a);
    ASSERT_TRUE(one.status.ok()) << one.status;
    EXPECT_LT(one.counters.density(), 0.4);
    for (const char* tile : {"5", "16", "64"})
      EXPECT_EQ(RunRouter(policy + tile, a).lists, one.lists);
  }
}
// The index keys of the prompt are still there.
TEST(Msa, DecodeAndChunksGiveTheListsOfOneCall) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 200, 200, 4, 2, 32, 24, 4);
  for (const char* index : {"index=own", "weights=synthetic"}) {
    const std::string policy = absl::StrCat("msa:block=16,k=3,", index);
    const RoutedRun whole = RunRouter(policy, a);
    for (auto [first, chunk] : {std::pair<int64_t, int64_t>{150, 1}, {33, 50}, {1, 1}}) {
      HarnessOptions o;
      o.first_chunk = first;
      o.chunk = chunk;
      EXPECT_EQ(RunRouter(policy, a, o).lists, whole.lists) << policy << first;
    }
  }
}
// Keys that came without the layer's input are kept, and are as others when they come anew.
TEST(Msa, KeysWithoutAnIndexAreKept) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 200, 200, 4, 2, 32, 24, 5);
  Registry methods;
  ASSERT_TRUE(AddBuiltinRouters(methods).ok());
  const char* policy = "msa:weights=synthetic,block=16,k=2";
  ASSERT_TRUE(WithSyntheticWeights(policy,
                                   {.max_queries = 200,
                                    .max_kv = 200,
                                    .heads = 4,
                                    .kv_heads = 2,
                                    .head_dim = 32,
                                    .value_dim = 24,
                                    .layers = 4,
                                    .width = a.width},
                                   1, methods)
                  .ok());
  SessionOptions s = HarnessSession(policy, a, {});
  s.methods = &methods;
  auto session = *AttentionSession::Create(s);
  int64_t listed = 0;
  session->OnPlan([&](int, const AttentionPlan& plan, const AttentionInputs&, double) {
    listed = 0;
    ForEachPair(plan, plan.branches[0], plan.q_count - 1, 0,
                [&](int64_t, int, double) { ++listed; });
  });
  std::vector<float> o(200 * 4 * 24);
  const auto feed = [&](int64_t at, int64_t n) {
    const absl::Status status =
        session->Run(0, ChunkOf(a.Inputs(), at, n), {.o = {o.data(), n, 4, 24, 96, 24}});
    EXPECT_TRUE(status.ok()) << status;
    return listed;
  };
  EXPECT_EQ(feed(100, 60), 7 * 16 + 16) << "blocks 0 to 6 hold keys without an index; own block";
  session->Truncate(0);
  EXPECT_EQ(feed(0, 160), 2 * 16);
  session->Truncate(64);
  EXPECT_EQ(feed(64, 96), 2 * 16);
  session->Truncate(64);
  EXPECT_EQ(feed(96, 64), 6 * 16 + 16);
}
TEST(Msa, TiesGoToTheFirstBlock) {
  const AttentionData a =
      WithTies(MakeAttentionData(DataKind::kGaussian, 333, 100, 4, 2, 16, 24, 2), 16);
  for (int64_t k : {2, 5, 9}) {
    ExpectListsOf(attention::MsaReference{.block = 16, .k = k},
                  absl::StrCat("msa:index=own,block=16,k=", k), a);
  }
}
TEST(Msa, NanAndInfiniteScores) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 300, 4, 2, 32, 24, 3);
  for (int64_t s = 0; s < 300; s += 5) a.k[s * 64] = s % 2 == 0 ? NAN : INFINITY;
  a.q[7 * 4 * 32] = NAN;
  a.hidden[20 * a.width] = NAN;
  a.hidden[200 * a.width + 3] = NAN;
  const Learned learned(a, 1);
  for (const Rule& rule : kRules) {
    ExpectListsOf(rule.reference, Own(rule), a);
    ExpectListsOf(learned.Reference(rule), Learned::Policy(rule), a, learned.Options({}));
  }
}
TEST(Msa, RefusesWhatDoesNotFit) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 64, 4, 2, 32, 24, 1);
  const auto said = [&](std::map<std::string, int64_t> ints) {
    Registry methods;
    EXPECT_TRUE(AddBuiltinRouters(methods).ok());
    methods.OpenWeightsWith(
        [&](const std::string&) -> absl::StatusOr<std::unique_ptr<const WeightSource>> {
          return std::unique_ptr<const WeightSource>(std::make_unique<RandomWeights>(ints));
        });
    HarnessOptions o;
    o.methods = &methods;
    return std::string(RunRouter("msa:weights=x", a, o).status.message());
  };
  std::map<std::string, int64_t> ints = {{"layers", 4}, {"kv_heads", 2}, {"key_heads", 1},
                                         {"dim", 8},    {"rope_dim", 4}, {"width", a.width}};
  EXPECT_EQ(said(ints), "");
  const auto with = [&](const char* name, int64_t value) {
    std::map<std::string, int64_t> changed = ints;
    changed[name] = value;
    return said(changed);
  };
  EXPECT_THAT(with("rope_dim", 3), testing::HasSubstr("3 of it rotated"));
  EXPECT_THAT(with("rope_dim", 10), testing::HasSubstr("10 of it rotated"));
  EXPECT_THAT(with("key_heads", 3), testing::HasSubstr("3 key heads for 2 groups"));
  EXPECT_THAT(with("dim", 0), testing::HasSubstr("index of width 0"));
  EXPECT_THAT(with("dim", -1), testing::HasSubstr("sluice.msa.dim is -1"));
  EXPECT_THAT(with("layers", 3), testing::HasSubstr("weights of 3 layers"));
  EXPECT_THAT(with("width", 5), testing::HasSubstr("hidden width 5; the model has"));
  EXPECT_THAT(std::string(BuiltinRouters().attention.Create("msa").status().message()),
              testing::HasSubstr("weights=FILE, or index=own"));
}
}  // namespace msa_test
SLUICE_END_NAMESPACE
