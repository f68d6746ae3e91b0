#include "sluice/routers/attention/seer_attention/seer_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/seer_attention/seer_attention_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/random_weights.h"
#include "sluice/tests/support/router_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace seer_attention_test {
struct Rule {
  const char* text;
  attention::SeerAttentionReference reference;
};
const Rule kRules[] = {
    {"block=16,tau=0.05", {.block = 16, .tau = 0.05}},
    {"block=32,tau=0.12", {.block = 32, .tau = 0.12}},
    {"block=64", {}},
    {"block=16,tau=0.9,dense_tail=2", {.block = 16, .tau = 0.9, .dense_tail = 2}},
    {"block=16,density=0.3", {.block = 16, .density = 0.3}},
    {"block=32,density=0.6,dense_tail=1", {.block = 32, .density = 0.6, .dense_tail = 1}},
    {"block=16,density=1", {.block = 16, .density = 1}},
    {"block=16,tau=-1", {.block = 16, .tau = -1}},
};
std::string Seer(const char* text) { return absl::StrCat("seer_attention:gate=identity,", text); }

// Queries and keys from before RoPE that are not those after it, and a prompt that goes on.
struct BeforeRope {
  AttentionData data;
  float base = 10000;
  int64_t after = 0;  // tokens of the prompt that are still to come

  explicit BeforeRope(const AttentionData& a)
      : data(MakeAttentionData(DataKind::kGaussian, a.kv_len, a.q_count, a.heads, a.kv_heads, a.d,
                               a.dv, 77)) {}
  HarnessOptions Options(HarnessOptions o) const {
    o.adjust = [this](SessionOptions&, AttentionInputs& in) {
      in.q_pre = data.Q();
      in.k_pre = data.K();
      in.rope_base = base;
      in.prompt_end = in.kv_len() + after;
    };
    return o;
  }
};

TEST(SeerAttention, ListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    BeforeRope pre(a);
    for (auto [base, after] : {std::pair<float, int64_t>{10000, 0}, {0, 0}, {500, 150}}) {
      pre.base = base;
      pre.after = after;
      for (const Rule& rule : kRules)
        ExpectListsOf(rule.reference, Seer(rule.text), a, pre.Options(c.Options()));
    }
  }
}
// Methods that read random gates of any tile.
class Learned {
 public:
  Learned(const AttentionData& a, int64_t block, int64_t tile, int64_t query_maps = 0)
      : weights_({{"layers", 4},
                  {"heads", a.heads},
                  {"kv_heads", a.kv_heads},
                  {"dim", a.d},
                  {"block", block},
                  {"tile", tile},
                  {"query_maps", query_maps}}),
        block_(block),
        tile_(tile) {
    const auto read = [&](const char* name, int64_t streams) {
      const auto d = static_cast<uint64_t>(a.d);
      return *weights_.ReadF32(name, {3 * d, static_cast<uint64_t>(streams) * d});
    };
    map_ = read("seer_attention.1.key", query_maps == 0 ? a.heads : a.kv_heads);
    if (query_maps != 0) query_map_ = read("seer_attention.1.query", a.heads);
    EXPECT_TRUE(AddBuiltinRouters(methods_).ok());
    methods_.OpenWeightsWith(
        [w = weights_](const std::string&) -> absl::StatusOr<std::unique_ptr<const WeightSource>> {
          return std::unique_ptr<const WeightSource>(std::make_unique<RandomWeights>(w));
        });
  }
  std::string Policy(const std::string& rule) const {
    return absl::StrCat("seer_attention:weights=x,block=", block_, ",", rule);
  }
  HarnessOptions Options(HarnessOptions o) const {
    o.methods = &methods_;
    o.layer = 1;
    return o;
  }
  attention::SeerAttentionReference Reference() const {
    attention::SeerAttentionReference r = {.block = block_};
    r.map = map_;
    r.query_map = query_map_;
    r.tile = tile_;
    return r;
  }

 private:
  RandomWeights weights_;
  int64_t block_, tile_;
  std::vector<float> map_, query_map_;
  Registry methods_;
};
TEST(SeerAttention, LearnedListsAreTheReferences) {
  for (const ReferenceCase& c : ReferenceCases()) {
    const AttentionData a = c.Data(1);
    BeforeRope pre(a);
    struct Shape {
      int64_t block, tile, query_maps;
    };
    for (const Shape& s : {Shape{16, 16, 0}, {32, 8, 0}, {64, 64, 0}, {16, 16, 1}, {32, 4, 1}}) {
      const Learned learned(a, s.block, s.tile, s.query_maps);
      attention::SeerAttentionReference want = learned.Reference();
      want.density = 0.3;
      const HarnessOptions o = learned.Options(pre.Options(c.Options()));
      ExpectListsOf(want, learned.Policy("density=0.3"), a, o);
      want.density = 0;
      want.tau = 0.06;
      ExpectListsOf(want, learned.Policy("tau=0.06"), a, o);
    }
  }
}
TEST(SeerAttention, WeightsThatDoNotFitAreRefused) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 64, 4, 2, 16, 16, 2);
  const auto said = [&](const Learned& learned, const std::string& policy) {
    return std::string(RunRouter(policy, a, learned.Options({})).status.message());
  };
  const Learned fits(a, 32, 32);
  EXPECT_EQ(said(fits, fits.Policy("tau=0")), "");
  EXPECT_THAT(said(fits, "seer_attention:weights=x,block=16"),
              testing::HasSubstr("trained for blocks of 32"));
  EXPECT_THAT(said(fits, "seer_attention:gate=identity,weights=x"),
              testing::HasSubstr("gate=learned"));
  EXPECT_THAT(said(fits, "seer_attention"), testing::HasSubstr("weights=FILE"));
  const Learned tile(a, 32, 12);
  EXPECT_THAT(said(tile, tile.Policy("tau=0")), testing::HasSubstr("tiles of 12"));
  const AttentionData other = MakeAttentionData(DataKind::kGaussian, 64, 64, 8, 2, 16, 16, 2);
  const Learned heads(other, 32, 32);
  EXPECT_THAT(said(heads, heads.Policy("tau=0")), testing::HasSubstr("the model has"));
}

// Tiles that end inside a block: what comes after the tile has no say.
TEST(SeerAttention, ChunksOfTilesGiveTheListsOfOneCall) {
  for (int64_t q : {448, 410}) {
    const AttentionData a = MakeAttentionData(DataKind::kNeedles, 448, q, 4, 2, 32, 24, 5);
    for (const char* rule : {"block=64,tau=0.2", "block=32,tau=0.1", "block=64,density=0.4"}) {
      HarnessOptions o;
      o.chunk = 64;
      EXPECT_EQ(RunRouter(Seer(rule), a, o).lists, RunRouter(Seer(rule), a).lists) << rule << q;
    }
  }
}
// Without RoPE, gates of whole numbers tie exactly.
TEST(SeerAttention, TiesGoToTheLowestBlock) {
  for (int64_t q : {109, 1}) {
    const AttentionData a =
        WithTies(MakeAttentionData(DataKind::kGaussian, 333, q, 4, 2, 16, 24, 2), 16);
    BeforeRope pre(a);
    pre.data = a;
    pre.base = 0;
    for (double density : {0.1, 0.2, 0.3, 0.5}) {
      const attention::SeerAttentionReference want = {.block = 16, .density = density};
      ExpectListsOf(want, absl::StrCat("seer_attention:gate=identity,block=16,density=", density),
                    a, pre.Options({}));
    }
  }
}
// NaN in a gate makes every probability of its rows NaN: they keep their own block. -inf is a
// probability of 0.
TEST(SeerAttention, NanAndInfiniteScores) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 130, 4, 2, 32, 24, 3);
  BeforeRope query(a);
  query.data.q[5 * 4 * 32] = NAN;
  BeforeRope key(a);
  key.data.k[250 * 2 * 32] = NAN;
  BeforeRope hidden(a);
  hidden.base = 0;
  for (size_t i = 0; i < hidden.data.q.size(); i += 32)
    hidden.data.q[i] = std::fabs(hidden.data.q[i]) + 0.1f;
  for (int64_t s = 40; s < 120; ++s) hidden.data.k[s * 2 * 32] = -INFINITY;
  for (const BeforeRope* pre : {&query, &key, &hidden}) {
    for (const Rule& rule : kRules)
      ExpectListsOf(rule.reference, Seer(rule.text), a, pre->Options({}));
  }
}
// k = max(1, floor((1 - sqrt(1 - r)) * blocks)) a row makes a share r of a causal triangle.
TEST(SeerAttention, DensityMeetsItsTarget) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 4096, 4096, 1, 1, 16, 16, 4);
  HarnessOptions o;
  o.validate = false;
  for (double r : {0.1, 0.2, 0.5, 1.0}) {
    int64_t kept = 0;
    o.see = [&](const AttentionPlan& plan) {
      const AttentionBranch& b = plan.branches[0];
      for (uint32_t n : b.rows.count) kept += n;
    };
    const RoutedRun run =
        RunRouter(absl::StrCat("seer_attention:gate=identity,block=16,density=", r), a, o);
    ASSERT_TRUE(run.status.ok()) << run.status;
    EXPECT_NEAR(static_cast<double>(kept) / (256 * 257 / 2), r, 0.01);
  }
}
TEST(SeerAttention, NestedInTau) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 512, 512, 4, 2, 32, 32, 1);
  const RoutedRun x = RunRouter("seer_attention:gate=identity,block=16,tau=0.04", a);
  const RoutedRun y = RunRouter("seer_attention:gate=identity,block=16,tau=0.02", a);
  for (size_t i = 0; i < x.lists.size(); ++i)
    EXPECT_TRUE(
        std::includes(y.lists[i].begin(), y.lists[i].end(), x.lists[i].begin(), x.lists[i].end()));
  EXPECT_LT(x.counters.exact_pairs, y.counters.exact_pairs);
}
TEST(SeerAttention, NeedsPreRopeInputs) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 64, 4, 2, 32, 32, 1);
  HarnessOptions o;
  o.adjust = [](SessionOptions&, AttentionInputs& in) { in.k_pre = {}; };
  EXPECT_EQ(RunRouter("seer_attention:gate=identity", a, o).status.code(),
            absl::StatusCode::kFailedPrecondition);
}
}  // namespace seer_attention_test
SLUICE_END_NAMESPACE
