#include "sluice/routers/attention/seer_attention_r/seer_attention_r.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/seer_attention_r/seer_attention_r_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/random_weights.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace seer_attention_r_test {
struct Rule {
  const char* text;
  attention::SeerAttentionRReference reference;
};
const Rule kRules[] = {
    {"block=16,k=4,prompt=gate", {.block = 16, .k = 4}},
    {"block=16,k=1,tile=7,prompt=gate", {.block = 16, .k = 1}},
    {"block=48,k=2,tile=1,prompt=gate", {.block = 48, .k = 2}},
    {"block=16,k=0,tau=0.06,tile=64,prompt=gate", {.block = 16, .k = 0, .tau = 0.06}},
    {"block=64,k=0,tau=-1,prompt=gate", {.block = 64, .k = 0, .tau = -1}},
    {"block=16,k=3", {.block = 16, .k = 3, .dense_prompt = true}},
};
std::string Policy(const Rule& rule) {
  return absl::StrCat("seer_attention_r:weights=x,", rule.text);
}

// Methods that read random gates of the data's shape.
class Gates {
 public:
  Gates(const AttentionData& a, int64_t block)
      : weights_({{"layers", 4},
                  {"heads", a.heads},
                  {"kv_heads", a.kv_heads},
                  {"dim", a.d},
                  {"block", block}}),
        data_(a) {
    EXPECT_TRUE(AddBuiltinRouters(methods_).ok());
    methods_.OpenWeightsWith(
        [w = weights_](const std::string&) -> absl::StatusOr<std::unique_ptr<const WeightSource>> {
          return std::unique_ptr<const WeightSource>(std::make_unique<RandomWeights>(w));
        });
  }
  HarnessOptions Options(HarnessOptions o, int64_t prompt_end = 0) const {
    o.methods = &methods_;
    o.layer = 2;
    o.adjust = [prompt_end](SessionOptions&, AttentionInputs& in) {
      in.rope_base = 500;
      in.prompt_end = prompt_end;
    };
    return o;
  }
  attention::SeerAttentionRReference Reference(const Rule& rule) const {
    attention::SeerAttentionRReference r = rule.reference;
    const auto u = [](int64_t n) { return static_cast<uint64_t>(n); };
    const auto read = [&](const char* name, std::vector<uint64_t> shape) {
      return *weights_.ReadF32(absl::StrCat("seer_attention_r.2.", name), shape);
    };
    const uint64_t rows = u(data_.kv_heads * data_.d);
    r.key = read("key", {u(3 * data_.d), rows});
    r.query = read("query", {u(data_.heads / data_.kv_heads * data_.d), rows});
    r.key_norm = read("key_norm", {u(data_.d)});
    r.query_norm = read("query_norm", {u(data_.d)});
    return r;
  }

 private:
  RandomWeights weights_;
  const AttentionData& data_;
  Registry methods_;
};

TEST(SeerAttentionR, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    for (const Rule& rule : kRules) {
      const Gates gates(a, rule.reference.block);
      for (int64_t prompt_end : {int64_t{0}, a.kv_len - a.q_count / 2, a.kv_len})
        ExpectListsOf(gates.Reference(rule), Policy(rule), a,
                      gates.Options(c.Options(), prompt_end));
    }
  }
}
TEST(SeerAttentionR, EveryBlockIsDenseToTheBit) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 300, 4, 2, 32, 24, 7);
  const RoutedRun dense = RunRouter("dense", a);
  for (const char* all : {"k=2147483648,prompt=gate", "k=0,tau=-1,prompt=gate"}) {
    const RoutedRun full =
        RunRouter(absl::StrCat("seer_attention_r:weights=synthetic,block=16,", all), a);
    ASSERT_TRUE(full.status.ok()) << full.status;
    EXPECT_EQ(full.lists, dense.lists) << all;
    EXPECT_EQ(full.o, dense.o) << all;
  }
}
TEST(SeerAttentionR, NestedInTauAndInTheBudget) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 300, 300, 4, 2, 32, 24, 8);
  const auto nested = [&](std::vector<std::string> rising) {
    RoutedRun last;
    int64_t grown = 0;
    for (const std::string& budget : rising) {
      const RoutedRun run =
          RunRouter("seer_attention_r:weights=synthetic,block=16,prompt=gate," + budget, a);
      ASSERT_TRUE(run.status.ok()) << run.status;
      for (size_t i = 0; i < last.lists.size(); ++i) {
        EXPECT_TRUE(std::includes(run.lists[i].begin(), run.lists[i].end(), last.lists[i].begin(),
                                  last.lists[i].end()))
            << budget;
        grown += run.lists[i].size() > last.lists[i].size();
      }
      last = run;
    }
    EXPECT_GT(grown, 0);
  };
  nested({"k=1", "k=2", "k=5", "k=9"});
  nested({"k=0,tau=0.2", "k=0,tau=0.08", "k=0,tau=0.03"});
}
TEST(SeerAttentionR, GatesSumToOne) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 200, 40, 4, 2, 32, 24, 8);
  const Gates gates(a, 16);
  const attention::SeerAttentionRReference r = gates.Reference(kRules[0]);
  for (int64_t i : {0, 7, 39}) {
    double sum = 0;
    for (double p : r.Gate(a.Inputs(), i, 1, r.BlockKeys(a.Inputs(), 1))) sum += p;
    EXPECT_NEAR(sum, 1, 1e-12);
  }
}
TEST(SeerAttentionR, TilesDecodeAndChunksChangeNoList) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 200, 200, 4, 2, 32, 24, 4);
  const std::string policy = "seer_attention_r:weights=synthetic,block=16,k=3,prompt=gate,tile=";
  const RoutedRun one = RunRouter(policy + "1", a);
  ASSERT_TRUE(one.status.ok()) << one.status;
  EXPECT_LT(one.counters.density(), 0.6);
  for (const char* tile : {"5", "16", "64"})
    EXPECT_EQ(RunRouter(policy + tile, a).lists, one.lists);
  for (auto [first, chunk] : {std::pair<int64_t, int64_t>{150, 1}, {33, 50}, {1, 1}}) {
    HarnessOptions o;
    o.first_chunk = first;
    o.chunk = chunk;
    EXPECT_EQ(RunRouter(policy + "16", a, o).lists, one.lists) << first;
  }
}
// Later keys, those of a query's own block too, have no say in its list.
TEST(SeerAttentionR, OnlyWholeBlocksHaveASay) {
  const AttentionData a = MakeAttentionData(DataKind::kNeedles, 200, 200, 4, 2, 32, 24, 4);
  AttentionData b = a;
  std::fill(b.k.begin() + 103 * 2 * 32, b.k.end(), 9.0f);
  const std::string policy = "seer_attention_r:weights=synthetic,block=16,k=3,prompt=gate";
  const RoutedRun x = RunRouter(policy, a);
  const RoutedRun y = RunRouter(policy, b);
  ASSERT_TRUE(x.status.ok() && y.status.ok());
  for (size_t i = 0; i < 103 * 4; ++i) EXPECT_EQ(x.lists[i], y.lists[i]) << i;
  EXPECT_NE(x.lists, y.lists);
}
TEST(SeerAttentionR, NanIsChosenInTheOwnBlockAlone) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 200, 4, 2, 32, 24, 3);
  a.k[40 * 64] = NAN;
  a.q[150 * 4 * 32] = NAN;
  for (const Rule& rule : kRules) {
    const Gates gates(a, rule.reference.block);
    ExpectListsOf(gates.Reference(rule), Policy(rule), a, gates.Options({}));
  }
}
TEST(SeerAttentionR, RefusesWhatDoesNotFit) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 64, 4, 2, 32, 24, 1);
  const auto said = [&](const char* name, int64_t value) {
    std::map<std::string, int64_t> ints = {
        {"layers", 4}, {"heads", 4}, {"kv_heads", 2}, {"dim", 32}, {"block", 64}};
    ints[name] = value;
    Registry methods;
    EXPECT_TRUE(AddBuiltinRouters(methods).ok());
    methods.OpenWeightsWith(
        [&](const std::string&) -> absl::StatusOr<std::unique_ptr<const WeightSource>> {
          return std::unique_ptr<const WeightSource>(std::make_unique<RandomWeights>(ints));
        });
    HarnessOptions o;
    o.methods = &methods;
    return std::string(RunRouter("seer_attention_r:weights=x", a, o).status.message());
  };
  EXPECT_EQ(said("block", 64), "");
  EXPECT_THAT(said("block", 32), testing::HasSubstr("block=64, and the weights are trained for"));
  EXPECT_THAT(said("layers", 3), testing::HasSubstr("gates of 3 layers"));
  EXPECT_THAT(said("heads", 3), testing::HasSubstr("3 heads in 2 groups"));
  EXPECT_THAT(said("kv_heads", 0), testing::HasSubstr("0 groups"));
  EXPECT_THAT(said("dim", 16), testing::HasSubstr("width 16; the model has"));
  EXPECT_THAT(said("dim", -1), testing::HasSubstr("sluice.seer_attention_r.dim is -1"));
  EXPECT_FALSE(BuiltinRouters().attention.Create("seer_attention_r").ok());
}
}  // namespace seer_attention_r_test
SLUICE_END_NAMESPACE
