// Informed Routing in the engine: equalities and measured skip, with forecasters of any weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/routers/token/informed_routing/informed_routing.h"
#include "sluice/routers/token/informed_routing/informed_routing_reference.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/tests/support/host_fixture.h"
#include "sluice/tests/support/model_reference.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace token_routing_test {
enum class Gate { kOff, kLearned, kSampled, kApproximate, kRandom };
const RandomWeights& Weights(int64_t rank) {
  static auto* made = new std::map<int64_t, RandomWeights>;
  return made
      ->try_emplace(rank,
                    std::map<std::string, int64_t>{
                        {"layers", 6}, {"dim", 384}, {"hidden", 32}, {"rank", rank}, {"silu", 1}})
      .first->second;
}
EngineOptions Options(Gate gate, int64_t rank = 16) {
  EngineOptions o;
  o.max_tokens = 1024;
  if (gate == Gate::kOff) return o;
  o.tokens.router = "informed_routing";
  if (gate == Gate::kSampled) o.tokens.router += ":eval_mode=sampled,seed=5";
  if (gate == Gate::kApproximate) o.tokens.router += ":offset=-1000000";
  if (gate == Gate::kRandom) o.tokens.random = {0.4};
  o.tokens.weights = &Weights(rank);
  return o;
}

// A gate that executes everything is taken for no gate at all. So one that approximates a few late
// tokens: what comes before them goes through gather, execute and combine, and must be dense but
// for the last bits (the matrix products have other numbers of rows); what comes after must not.
TEST(TokenRouting, ExecutedTokensAreDense) {
  const std::vector<int32_t> tokens = Tokens(600);
  EngineOptions o = Options(Gate::kRandom);
  o.tokens.random = {0.0004};
  o.tokens.seed = 2;
  int64_t first = 600;
  int64_t drawn = 0;
  for (uint64_t t = 1; t < 600; ++t) {
    for (uint64_t unit = 0; unit < 12; ++unit) {
      if (sluice::RandomUniform({o.tokens.seed, 0, unit / 2, unit % 2, t}) >= o.tokens.random[0])
        continue;
      first = std::min(first, static_cast<int64_t>(t));
      ++drawn;
    }
  }
  ASSERT_GT(first, 20) << "another seed or rate";
  ASSERT_LT(first, 600);
  const auto e = Make(o);
  const std::vector<float> got = Logits(*e, tokens, 0);
  const std::vector<float> want = Logits(*Make(Options(Gate::kOff)), tokens, 0);
  const auto end = static_cast<int64_t>(first) * Mini().shape.vocab;
  const auto apart = [&](int64_t from, int64_t to) {
    float most = 0;
    for (int64_t i = from; i < to; ++i) most = std::max(most, std::abs(got[i] - want[i]));
    return most;
  };
  EXPECT_LT(apart(0, end), 5e-4f) << first;
  EXPECT_GT(apart(end, std::ssize(got)), 5e-2f);
  int64_t approximated = 0;
  for (int64_t unit = 0; unit < 12; ++unit)
    approximated += e->token_counters(unit / 2, unit % 2).approximated;
  EXPECT_EQ(approximated, drawn);
}
// The trained routers run; that they let every token execute is the offset's doing.
TEST(TokenRouting, AllExecutingIsBitIdenticalToDense) {
  const std::vector<int32_t> tokens = Tokens(600);
  EngineOptions o = Options(Gate::kLearned);
  o.tokens.router += ":offset=1000000";
  o.tokens.pin_first = false;
  const auto all = Make(o), dense = Make(Options(Gate::kOff));
  EXPECT_EQ(Logits(*all, tokens, 0), Logits(*dense, tokens, 0));
  ExpectSameCaches(*all, *dense);
  for (int64_t unit = 0; unit < 12; ++unit)
    EXPECT_EQ(all->token_counters(unit / 2, unit % 2).executed, 600);
}
// Tokens drawn for every unit, in double precision: those that execute attend to every earlier key,
// of approximated tokens too, or with masked ones to executed tokens' keys alone.
TEST(TokenRouting, DrawnTokensAgreeWithAModelInDoublePrecision) {
  constexpr size_t kTokens = 40;
  constexpr double kShare = 0.5;
  const std::vector<int32_t> tokens = Tokens(kTokens);
  for (bool masked : {false, true}) {
    EngineOptions o = Options(Gate::kRandom);
    o.tokens.random = {kShare};
    o.tokens.seed = 9;
    o.tokens.mask_approximated = masked;
    o.chunk = 16;
    const auto e = Make(o);
    const std::vector<float> got = Logits(*e, tokens, 0);

    reference::Rows x = reference::Embed(Mini(), tokens);
    const std::vector<bool> none(kTokens, false);
    for (size_t layer = 0; layer < 6; ++layer) {
      const Layer& l = Mini().layers[layer];
      for (size_t unit : {0u, 1u}) {
        std::vector<bool> executes(kTokens);
        for (size_t t = 0; t < kTokens; ++t)
          executes[t] =
              t == 0 || sluice::RandomUniform({o.tokens.seed, 0, layer, unit, t}) >= kShare;
        const std::vector<bool> all(kTokens, true);
        reference::Rows y = x;
        if (unit == 0) {
          const auto sees = [&](size_t, size_t key) { return !masked || executes[key]; };
          reference::MaskedBlock(Mini().shape, l, all, none, sees, y);
        } else {
          reference::MaskedBlock(
              Mini().shape, l, none, executes, [](size_t, size_t) { return true; }, y);
        }
        for (size_t t = 0; t < kTokens; ++t) {
          if (executes[t]) continue;
          const std::vector<double> f = sluice::reference::Forecast(
              Weights(16), absl::StrCat("blk.", layer, ".informed.", unit == 0 ? "attn." : "ffn."),
              reference::Norm(Mini().shape, x[t], unit == 0 ? l.attn_norm : l.ffn_norm), 16, true);
          y[t] = x[t];
          for (size_t i = 0; i < f.size(); ++i) y[t][i] += f[i];
        }
        x = y;
      }
    }
    EXPECT_LE(reference::RelativeError(Mini(), x, got, 97), 1e-5) << masked;
  }
}
TEST(TokenRouting, AllApproximateIsAModelOfForecasters) {
  const std::vector<int32_t> tokens = Tokens(20);
  EngineOptions o = Options(Gate::kApproximate);
  o.tokens.pin_first = false;
  const auto e = Make(o);
  const std::vector<float> got = Logits(*e, tokens, 0);
  const ModelShape& m = Mini().shape;
  for (size_t t = 0; t < tokens.size(); ++t) {
    const float* embed = &Mini().embed[tokens[t] * m.width];
    std::vector<double> x(embed, embed + m.width);
    for (size_t layer = 0; layer < 6; ++layer) {
      for (const char* unit : {"attn.", "ffn."}) {
        const Layer& l = Mini().layers[layer];
        const std::vector<double> f = sluice::reference::Forecast(
            Weights(16), "blk." + std::to_string(layer) + ".informed." + unit,
            reference::Norm(m, x, unit[0] == 'a' ? l.attn_norm : l.ffn_norm), 16, true);
        for (size_t i = 0; i < x.size(); ++i) x[i] += f[i];
      }
    }
    x = reference::Norm(m, x, Mini().norm);
    for (size_t v = 0; v < static_cast<size_t>(m.vocab); v += 97) {
      double want = 0;
      for (size_t i = 0; i < x.size(); ++i)
        want += x[i] * static_cast<double>(Mini().head()[v * static_cast<size_t>(m.width) + i]);
      ASSERT_NEAR(got[t * static_cast<size_t>(m.vocab) + v], want, 2e-3);
    }
  }
  EXPECT_EQ(e->counters().exact_pairs, 0);
}
// One executing row among 64: the pinned first token is the dense model's, and what it leaves in
// the cache changes nothing for the forecasts of the others.
TEST(TokenRouting, OneExecutingRowAmongForecasts) {
  const std::vector<int32_t> tokens = Tokens(64);
  EngineOptions o = Options(Gate::kApproximate), none = o;
  none.tokens.pin_first = false;
  const auto e = Make(o);
  const std::vector<float> got = Logits(*e, tokens, 0);
  const std::vector<float> forecasts = Logits(*Make(none), tokens, 0);
  const std::vector<float> dense = Logits(*Make(Options(Gate::kOff)), {tokens[0]}, 0);
  const auto vocab = static_cast<size_t>(Mini().shape.vocab);
  ExpectNear({got.begin(), got.begin() + static_cast<int64_t>(vocab)}, dense, 1e-3f);
  ExpectNear({got.begin() + static_cast<int64_t>(vocab), got.end()},
             {forecasts.begin() + static_cast<int64_t>(vocab), forecasts.end()}, 1e-4f);
  for (int64_t unit = 0; unit < 12; ++unit)
    EXPECT_EQ(e->token_counters(unit / 2, unit % 2).approximated, 63);
}
TEST(TokenRouting, DecodeEqualsOnePassAndChunksDoNotMatter) {
  const std::vector<int32_t> tokens = Tokens(300);
  for (Gate gate : {Gate::kLearned, Gate::kSampled, Gate::kRandom}) {
    EngineOptions o = Options(gate), small = o;
    small.chunk = 64;
    small.threads = 1;
    const std::vector<float> whole = Logits(*Make(o), tokens, 280);
    ExpectNear(Logits(*Make(small), tokens, 280), whole, 5e-3f);
    const auto e = Make(o);
    Logits(*e, {tokens.begin(), tokens.begin() + 280}, 279);
    std::vector<float> decoded;
    for (size_t i = 280; i < 300; ++i) {
      const std::vector<float> one = Logits(*e, {tokens[i]}, e->length());
      decoded.insert(decoded.end(), one.begin(), one.end());
    }
    ExpectNear(decoded, whole, 5e-3f);
  }
}
TEST(TokenRouting, ApproximatedTokensKeepTheirKeys) {
  // Most attention is approximated; masking the keys of those tokens must change what the others
  // compute.
  const std::vector<int32_t> tokens = Tokens(120);
  EngineOptions o = Options(Gate::kRandom), masked = o;
  o.tokens.random.assign(12, 0.9);
  masked.tokens = o.tokens;
  masked.tokens.mask_approximated = true;
  const auto a = Make(o), b = Make(masked);
  const std::vector<float> keep = Logits(*a, tokens, 0), mask = Logits(*b, tokens, 0);
  EXPECT_GT(a->counters().exact_pairs, 0);
  EXPECT_EQ(a->cache_rows(0), 120);
  float apart = 0;
  for (size_t i = 0; i < keep.size(); ++i) apart = std::max(apart, std::abs(keep[i] - mask[i]));
  EXPECT_GT(apart, 1e-3f);
  for (float x : mask) ASSERT_TRUE(std::isfinite(x));
}
TEST(TokenRouting, RankZeroIsSkipping) {
  const std::vector<int32_t> tokens = Tokens(50);
  EngineOptions o = Options(Gate::kApproximate, 0);
  o.tokens.pin_first = false;
  const auto e = Make(o);
  const std::vector<float> got =
      Logits(*e, tokens, 49);  // the last embedding goes straight to the head
  std::vector<float> h(384);
  double square = 0, want = 0;
  const float* x = &Mini().embed[static_cast<size_t>(tokens[49]) * 384];
  for (size_t i = 0; i < 384; ++i)
    square += static_cast<double>(x[i]) * static_cast<double>(x[i]) / 384;
  for (size_t i = 0; i < 384; ++i)
    want += static_cast<double>(x[i]) / std::sqrt(square + static_cast<double>(Mini().shape.eps)) *
            static_cast<double>(Mini().norm[i]) * static_cast<double>(Mini().head()[7 * 384 + i]);
  EXPECT_NEAR(got[7], want, 1e-3);
}
TEST(TokenRouting, CountersFallWithTheRate) {
  const std::vector<int32_t> tokens = Tokens(1000);
  int64_t macs = 0, pairs = 0;
  for (double rate : {0.0, 0.25, 0.5, 0.9}) {
    EngineOptions o = Options(Gate::kRandom);
    o.tokens.random = {rate};
    const auto e = Make(o);
    Logits(*e, tokens, 999);
    double sparsity = 0;
    for (int64_t layer = 0; layer < 6; ++layer)
      sparsity +=
          (e->token_counters(layer, 0).sparsity() + e->token_counters(layer, 1).sparsity()) / 12;
    EXPECT_NEAR(sparsity, rate, 0.02);
    if (rate > 0) {
      EXPECT_LT(e->linear().macs, macs);
      EXPECT_LT(e->counters().exact_pairs, pairs);
    }
    macs = e->linear().macs;
    pairs = e->counters().exact_pairs;
  }
}
TEST(TokenRouting, DecodeDoesNotTouchTheWeightsOfSkippedUnits) {
  EngineOptions o = Options(Gate::kApproximate);
  const auto e = Make(o), dense = Make(Options(Gate::kOff));
  for (Engine* x : {e.get(), dense.get()}) Logits(*x, Tokens(10), 9);
  const int64_t before = e->linear().weight_bytes, dense_before = dense->linear().weight_bytes;
  ASSERT_TRUE(e->Feed({5}, 1 << 20).ok());
  ASSERT_TRUE(dense->Feed({5}, 1 << 20).ok());
  const int64_t head = 0;  // nothing visits the logits
  const int64_t keys = 6 * 384 * 2 * 128 * 4;
  // A forecast of rank 16 declares its share of the unit's dense cost, 4 d^2 and 8 d^2.
  const double share = 2.0 * 384 * 16 / (384 * 384);
  const ModelShape& m = Mini().shape;
  const int64_t attention = 2 * m.width * (m.heads + m.kv_heads) * m.head_dim;
  const int64_t forecasts = 6 * 4 *
                            (std::llround(share / 4 * static_cast<double>(attention)) +
                             std::llround(share / 8 * static_cast<double>(3 * m.width * m.ffn)));
  EXPECT_EQ(e->linear().weight_bytes - before, keys + forecasts + head);
  EXPECT_GT(dense->linear().weight_bytes - dense_before, 5 * (keys + forecasts));
}
// The trainer's stored vectors: 4 tokens of every unit, and the loss of a prompt of 256 tokens.
TEST(TokenRouting, ReproducesTheTrainer) {
  for (const char* kind : {"lff25", "lff40", "skip25", "skip40"}) {
    for (int seed = 1; seed <= 3; ++seed) {
      const std::string name = absl::StrCat("informed_routing-", kind, "-s", seed, ".gguf");
      auto w = Gguf::Open(std::string(SLUICE_SOURCE_DIR) + "/examples/models/" + name);
      ASSERT_TRUE(w.ok()) << w.status();
      const std::vector<float> features = *w->ReadF32("golden.features", {384, 48}),
                               logits = *w->ReadF32("golden.logits", {2, 48}),
                               forecasts = *w->ReadF32("golden.forecasts", {384, 48});
      int64_t approximated = 0;
      for (int64_t u = 0; u < 12; ++u) {
        auto r = token::InformedRouting::Create({u / 2, u % 2, 0}, *w);
        ASSERT_TRUE(r.ok()) << r.status();
        auto plan = r->MakePlan({.items = 4, .hidden = 384});
        OwnedWorkspace memory(plan->workspace_bytes);
        float got[8];
        std::vector<float> y(4 * 384), scratch(r->forecaster().scratch_floats(4));
        const float* h = &features[static_cast<size_t>(u) * 4 * 384];
        r->Logits(*plan, {h, 4, 384, 384}, {{memory.data(), plan->workspace_bytes}, nullptr}, got);
        r->forecaster().Apply(h, 4, y.data(), scratch.data());
        for (size_t i = 0; i < 4; ++i) {
          const float* want = &logits[(static_cast<size_t>(u) * 4 + i) * 2];
          for (size_t j = 0; j < 2; ++j) ASSERT_NEAR(got[2 * i + j], want[j], 1e-4) << name;
          ASSERT_EQ(token::InformedRouting::Decide(got + 2 * i),
                    token::InformedRouting::Decide(want))
              << name;
          approximated += token::InformedRouting::Decide(want);
        }
        for (size_t i = 0; i < y.size(); ++i)
          ASSERT_NEAR(y[i], forecasts[static_cast<size_t>(u) * 4 * 384 + i], 1e-4) << name;
      }
      EXPECT_GT(approximated, 0);

      EngineOptions o = Options(Gate::kLearned);
      o.tokens.weights = &*w;
      const auto e = Make(o);
      const std::vector<float> ids = *w->ReadF32("golden.prompt", {256});
      const std::vector<int32_t> prompt(ids.begin(), ids.end());
      auto perplexity = Perplexity(*e, prompt);
      ASSERT_TRUE(perplexity.ok()) << perplexity.status();
      EXPECT_NEAR(std::log(*perplexity), (*w->ReadF32("golden.nll", {1}))[0], 2e-3) << name;
    }
  }
}
TEST(TokenRouting, BadOptionsAreExplained) {
  const auto message = [](const EngineOptions& o) {
    auto e = Engine::Create(Mini(), o);
    if (!e.ok()) return std::string(e.status().message());
    return std::string((*e)->Feed(Tokens(100), 1 << 20).message());
  };
  EngineOptions o = Options(Gate::kLearned);
  o.tokens.weights = nullptr;
  EXPECT_THAT(message(o), testing::HasSubstr("needs trained weights"));
  o = Options(Gate::kRandom);
  o.tokens.random = {0.5, 0.5};
  EXPECT_THAT(message(o), testing::HasSubstr("wanted one, or one a layer and unit: 12"));
  for (double share : {-0.1, 1.1, std::nan("")}) {
    o.tokens.random = {share};
    EXPECT_THAT(message(o), testing::HasSubstr("outside [0, 1]"));
  }
  o = Options(Gate::kLearned);
  o.tokens.router = "token/no_such";
  EXPECT_THAT(message(o), testing::HasSubstr("no method 'token/no_such'; known: "));
  for (const char* other : {"top_k", "ftp_static", "token/random"}) {
    o.tokens.router = other;
    EXPECT_THAT(message(o), testing::HasSubstr("cannot route tokens here")) << other;
  }
  o = Options(Gate::kRandom);
  o.router = "mean_pool:k=4";
  EXPECT_THAT(message(o), testing::HasSubstr("contiguous queries only"));
}
}  // namespace token_routing_test
}  // namespace host
SLUICE_END_NAMESPACE
