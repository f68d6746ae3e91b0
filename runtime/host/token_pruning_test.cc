// Token pruning in the engine: equalities, measured skip and ragged caches, with routers of any
// weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/pruners/token/ftp/ftp.h"
#include "sluice/pruners/token/ftp/ftp_reference.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/kernels/softmax/softmax.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/tests/support/host_fixture.h"
#include "sluice/tests/support/model_reference.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace token_pruning_test {
constexpr char kLearned[] = "token/ftp";
constexpr char kExact[] = "token/ftp:topk=1";
constexpr char kStatic[] = "ftp_static";
constexpr char kRandom[] = "token/random";
const RandomWeights& Weights() {
  static const auto* made = new RandomWeights({{"hidden", 64}});
  return *made;
}
const RandomWeights& TokenWeights() {
  static const auto* made =
      new RandomWeights({{"layers", 6}, {"dim", 384}, {"hidden", 32}, {"rank", 4}, {"silu", 1}});
  return *made;
}
const std::vector<double> kMixed = {0, 0.4, 0.3, 0.6, 0.2, 0.8};
EngineOptions Options(const std::string& router, std::vector<double> sparsity) {
  EngineOptions o;
  o.max_tokens = 1024;
  o.pruning.router = router;
  o.pruning.sparsity = std::move(sparsity);
  o.pruning.weights = &Weights();
  return o;
}

TEST(ReceivedAttention, AgreesWithTheReference) {
  const int64_t rows = 40, heads = 4, kv = 2, d = 16;
  const std::vector<float> q = RandomFeatures(rows, heads * d, 1),
                           k = RandomFeatures(rows, kv * d, 2);
  for (int64_t m : {1, 7, 40}) {
    const HeadsView<const float> qv = {q.data(), m, heads, d, heads * d, d};
    const KvView kvv = {k.data(), DType::kF32, rows, kv, d, kv * d, d};
    std::vector<float> got(rows), own(m);
    ReceivedAttention score;
    score.Run(qv, kvv, 0.25f, false, got.data());
    const std::vector<double> want = sluice::reference::ReceivedAttention(qv, kvv, 0.25);
    for (size_t j = 0; j < got.size(); ++j) EXPECT_NEAR(got[j], want[j], 1e-4 * (1 + want[j]));
    score.Run(qv, kvv, 0.25f, true, own.data());
    EXPECT_NEAR(own.back(), got.back(), 1e-4);  // only the last query votes for the last key
  }
}
TEST(TokenPruning, NoSparsityIsBitIdenticalToDense) {
  const std::vector<int32_t> tokens = Tokens(600);
  EngineOptions dense;
  dense.max_tokens = 1024;
  const std::vector<float> want = Logits(*Make(dense), tokens, 0);
  for (const char* by : {kLearned, kStatic, kRandom})
    EXPECT_EQ(Logits(*Make(Options(by, std::vector<double>(6, 0.0))), tokens, 0), want);
}
TEST(TokenPruning, FullSparsityComputesTheFirstTokenOnly) {
  for (const char* by : {kStatic, kRandom}) {
    const auto e = Make(Options(by, std::vector<double>(6, 1.0)));
    Logits(*e, Tokens(50), 49);
    EXPECT_EQ(e->block_counters(0).executed, 50);  // always dense: it fills the score table
    for (int64_t i = 1; i < 6; ++i) {
      EXPECT_EQ(e->block_counters(i).executed, 1);
      EXPECT_EQ(e->cache_rows(i), 1);
    }
  }
}
TEST(TokenPruning, AgreesWithAMaskedDenseModel) {
  const std::vector<int32_t> tokens = Tokens(24);
  const std::vector<float> got = Logits(*Make(Options(kStatic, kMixed)), tokens, 0);
  reference::Rows x = reference::Embed(Mini(), tokens);
  for (size_t layer = 0; layer < 6; ++layer) {
    const size_t k = static_cast<size_t>(token::quota::Kept(kMixed[layer], 24));
    std::vector<bool> computed(24);
    for (size_t t = 0; t < 24; ++t)
      computed[t] = t == 0 || t > 24 - k;  // the first, then the most recent
    reference::MaskedBlock(
        Mini().shape, Mini().layers[layer], computed, [](size_t, size_t) { return true; }, x);
  }
  const size_t vocab = static_cast<size_t>(Mini().shape.vocab);
  for (size_t t = 0; t < 24; ++t) {
    const std::vector<double> want = reference::LogitsOf(Mini(), x[t], 97);
    for (size_t v = 0; v < want.size(); ++v)
      ASSERT_NEAR(got[t * vocab + 97 * v], want[v], 2e-3) << t;
  }
}
TEST(TokenPruning, AfterAttentionOnlyTheFfnIsSkipped) {
  const std::vector<int32_t> tokens = Tokens(24);
  EngineOptions o = Options(kStatic, kMixed);
  o.pruning.after_attention = true;
  const auto e = Make(o);
  const std::vector<float> got = Logits(*e, tokens, 0);
  reference::Rows x = reference::Embed(Mini(), tokens);
  const std::vector<bool> all(24, true);
  for (size_t layer = 0; layer < 6; ++layer) {
    EXPECT_EQ(e->cache_rows(static_cast<int64_t>(layer)), 24);
    const size_t k = static_cast<size_t>(token::quota::Kept(kMixed[layer], 24));
    std::vector<bool> fed(24);
    for (size_t t = 0; t < 24; ++t) fed[t] = t == 0 || t > 24 - k;
    reference::MaskedBlock(
        Mini().shape, Mini().layers[layer], all, fed, [](size_t, size_t) { return true; }, x);
  }
  const size_t vocab = static_cast<size_t>(Mini().shape.vocab);
  for (size_t t = 0; t < 24; ++t) {
    const std::vector<double> want = reference::LogitsOf(Mini(), x[t], 97);
    for (size_t v = 0; v < want.size(); ++v)
      ASSERT_NEAR(got[t * vocab + 97 * v], want[v], 2e-3) << t;
  }
}
TEST(TokenPruning, AfterAttentionKeepsTheDenseModelAtNoSparsityAndItsChunks) {
  const std::vector<int32_t> tokens = Tokens(300);
  EngineOptions dense;
  dense.max_tokens = 1024;
  for (const char* by : {kExact, kStatic}) {
    EngineOptions o = Options(by, std::vector<double>(6, 0.0));
    o.pruning.after_attention = true;
    EXPECT_EQ(Logits(*Make(o), tokens, 0), Logits(*Make(dense), tokens, 0));
    o.pruning.sparsity = kMixed;
    EngineOptions small = o;
    small.chunk = 64;
    small.threads = 1;
    ExpectNear(Logits(*Make(small), tokens, 250), Logits(*Make(o), tokens, 250), 5e-3f);
  }
}
TEST(TokenPruning, ChunksAndThreadsDoNotMatter) {
  const std::vector<int32_t> tokens = Tokens(300);
  for (const char* by : {kExact, kStatic, kRandom}) {
    EngineOptions o = Options(by, kMixed);
    EngineOptions small = o;
    small.chunk = 64;
    small.threads = 1;
    ExpectNear(Logits(*Make(small), tokens, 250), Logits(*Make(o), tokens, 250), 5e-3f);
  }
}
TEST(TokenPruning, DecodingOverRaggedCachesEqualsOneFeed) {
  // After the prompt every token is computed by every block, over whatever keys each block kept.
  const std::vector<int32_t> tokens = Tokens(320), prompt(tokens.begin(), tokens.begin() + 300),
                             rest(tokens.begin() + 300, tokens.end());
  for (const char* by : {kExact, kStatic}) {
    const EngineOptions o = Options(by, kMixed);
    const auto a = Make(o), b = Make(o);
    Logits(*a, prompt, 299);
    Logits(*b, prompt, 299);
    for (int64_t i = 0; i < 6; ++i)
      EXPECT_EQ(a->cache_rows(i), token::quota::Kept(kMixed[i], 300)) << i;
    const std::vector<float> whole = Logits(*a, rest, 300);
    std::vector<float> decoded;
    for (int32_t t : rest) {
      const std::vector<float> one = Logits(*b, {t}, b->length());
      decoded.insert(decoded.end(), one.begin(), one.end());
    }
    ExpectNear(decoded, whole, 5e-3f);
    EXPECT_EQ(a->cache_rows(5), token::quota::Kept(0.8, 300) + 20);
  }
}
TEST(TokenPruning, DecodingSkipsBlocksAboveTheThreshold) {
  EngineOptions o = Options(kStatic, kMixed);
  o.pruning.decode = 0.5;
  const auto e = Make(o);
  Logits(*e, Tokens(100), 99);
  const int64_t kept3 = e->cache_rows(3), kept1 = e->cache_rows(1), macs = e->linear().macs;
  Logits(*e, {5}, 100);
  EXPECT_EQ(e->cache_rows(3), kept3);
  EXPECT_EQ(e->cache_rows(1), kept1 + 1);
  EXPECT_EQ(e->block_counters(5).approximated, 101 - token::quota::Kept(0.8, 100));
  const auto dense = Make(Options(kStatic, std::vector<double>(6, 0.0)));
  Logits(*dense, {5}, 0);
  EXPECT_EQ((e->linear().macs - macs) * 6, dense->linear().macs * 4);
}
TEST(TokenPruning, CausalDecisionsDoNotSeeWhatFollows) {
  // With causal scores and thresholds a prefix has the logits that it has alone, up to the position
  // factor, which is the share of the prompt: compared at the same length.
  std::vector<int32_t> tokens = Tokens(200), other = tokens;
  for (size_t i = 150; i < 200; ++i) other[i] = 17;
  for (bool causal : {true, false}) {
    EngineOptions o = Options(kLearned, kMixed);
    o.pruning.causal = causal;
    const auto a = Make(o), b = Make(o);
    const std::vector<float> x = Logits(*a, tokens, 0), y = Logits(*b, other, 0);
    const size_t prefix = 150 * static_cast<size_t>(Mini().shape.vocab);
    if (causal)
      ExpectNear({x.begin(), x.begin() + static_cast<int64_t>(prefix)},
                 {y.begin(), y.begin() + static_cast<int64_t>(prefix)}, 2e-3f);
    EXPECT_GT(a->block_counters(3).executed, 0);
  }
}
TEST(TokenPruning, ReproducesTheTrainer) {
  for (const char* kind : {"full", "nopos", "causal"}) {
    for (int seed = 1; seed <= 3; ++seed) {
      const std::string name = absl::StrCat("/ftp-", kind, "30-s", seed, ".gguf");
      auto w = Gguf::Open(std::string(SLUICE_SOURCE_DIR) + "/examples/models" + name);
      ASSERT_TRUE(w.ok()) << w.status();
      const uint64_t rows = (*w->Tensor("golden.logits"))->elements / 2;
      const std::vector<float> factors = *w->ReadF32("golden.factors", {4, rows}),
                               logits = *w->ReadF32("golden.logits", {2, rows}),
                               kept = *w->ReadF32("golden.kept", {5}),
                               schedule = *w->ReadF32("ftp.schedule", {6}),
                               ids = *w->ReadF32("golden.ids",
                                                 {(*w->Tensor("golden.ids"))->elements});
      auto r = token::Ftp::Create({}, *w);
      ASSERT_TRUE(r.ok()) << r.status();
      const int64_t n = static_cast<int64_t>(rows);
      auto plan = r->MakePlan({.items = n});
      OwnedWorkspace memory(plan->workspace_bytes);
      std::vector<float> got(2 * rows);
      r->Logits(*plan, {factors.data(), n, 4, 4}, {{memory.data(), plan->workspace_bytes}, nullptr},
                got.data());
      for (size_t i = 0; i < rows; ++i) {
        // Margins of a sharp router reach tens: 1e-4 of the value.
        for (size_t j = 2 * i; j < 2 * i + 2; ++j)
          ASSERT_NEAR(got[j], logits[j], 1e-4 * std::max(1.0f, std::abs(logits[j]))) << name;
        ASSERT_EQ(token::Ftp::Decide(&got[2 * i]), token::Ftp::Decide(&logits[2 * i])) << name;
      }
      // The whole pruned model: how many tokens every block computes, and the loss of what follows
      // the prompt.
      EngineOptions o = Options(kLearned, {schedule.begin(), schedule.end()});
      o.max_tokens = 2048;
      o.pruning.weights = &*w;
      o.pruning.causal = *w->Int("sluice.ftp.causal") != 0;
      const auto e = Make(o);
      const int64_t prompt = static_cast<int64_t>(ids.size()) - *w->Int("sluice.ftp.follow");
      double nll = 0;
      const size_t vocab = static_cast<size_t>(e->model().shape.vocab);
      const auto see = [&](int64_t at, const float* x) {
        if (at + 1 < static_cast<int64_t>(ids.size()))
          nll += static_cast<double>(kernels::LogSumExp(x, vocab) -
                                     x[static_cast<int64_t>(ids[at + 1])]);
      };
      ASSERT_TRUE(e->Feed({ids.begin(), ids.begin() + prompt}, prompt - 1, see).ok());
      for (int64_t l = 1; l < 6; ++l)
        EXPECT_NEAR(static_cast<double>(e->block_counters(l).executed), kept[l - 1], 3)
            << name << l;
      ASSERT_TRUE(e->Feed({ids.begin() + prompt, ids.end()}, prompt, see).ok());
      const double follow = static_cast<double>(static_cast<int64_t>(ids.size()) - prompt);
      EXPECT_NEAR(nll / follow, (*w->ReadF32("golden.nll", {1}))[0], 1e-2) << name;
    }
  }
}
TEST(TokenPruning, CountersFallWithTheSparsity) {
  const std::vector<int32_t> tokens = Tokens(1000);
  int64_t macs = 0, pairs = 0;
  for (double s : {0.0, 0.25, 0.5, 0.9}) {
    const auto e = Make(Options(kStatic, {0, s, s, s, s, s}));
    Logits(*e, tokens, 999);
    const double linear = (1 + 5 * (1 - s)) / 6, attention = (1 + 5 * (1 - s) * (1 - s)) / 6;
    if (s == 0) {
      macs = e->linear().macs;
      pairs = e->counters().exact_pairs;
    }
    EXPECT_NEAR(static_cast<double>(e->linear().macs) / static_cast<double>(macs), linear, 1e-3);
    EXPECT_NEAR(static_cast<double>(e->counters().exact_pairs) / static_cast<double>(pairs),
                attention, 1e-2);
    EXPECT_NEAR(e->block_counters(2).sparsity(), s, 1e-9);
  }
}
TEST(TokenPruning, ShortPromptsRun) {
  for (int64_t n : {1, 2, 3}) {
    for (const char* by : {kLearned, kStatic, kRandom}) {
      const auto e = Make(Options(by, std::vector<double>(6, 0.9)));
      for (float x : Logits(*e, Tokens(n), 0)) ASSERT_TRUE(std::isfinite(x));
      for (int64_t i = 0; i < 6; ++i) EXPECT_GE(e->cache_rows(i), 1);
    }
  }
}
TEST(TokenPruning, RefusesWhatItCannotRun) {
  const auto refuses = [](const EngineOptions& o, const char* why) {
    EXPECT_THAT(std::string(Engine::Create(Mini(), o).status().message()), testing::HasSubstr(why));
  };
  refuses(Options(kStatic, {0, 0.5}), "one a block: 6");
  refuses(Options(kStatic, std::vector<double>(6, 1.5)), "outside [0, 1]");
  refuses(Options(kStatic, std::vector<double>(6, NAN)), "outside [0, 1]");
  EngineOptions o = Options(kLearned, kMixed);
  o.pruning.weights = nullptr;
  refuses(o, "needs trained weights");
  o = Options(kStatic, kMixed);
  o.tokens.router = "token/informed_routing";
  o.tokens.weights = &TokenWeights();
  refuses(o, "without layer routing, token routing");
}
}  // namespace token_pruning_test
}  // namespace host
SLUICE_END_NAMESPACE
