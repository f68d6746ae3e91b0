// Flux Attention on the bundled model: equalities, invariants and the trainer's stored vectors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "sluice/routers/layer/flux_attention/flux_attention.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/tests/support/host_fixture.h"
#include "sluice/tests/support/model_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace layer_routing_test {
const std::string kModels = std::string(SLUICE_SOURCE_DIR) + "/examples/models/";
const Gguf& Weights(int seed = 1) {
  static const auto* files = new std::vector<Gguf>([] {
    std::vector<Gguf> v;
    for (int s = 1; s <= 3; ++s)
      v.push_back(*Gguf::Open(kModels + "flux_attention-s" + std::to_string(s) + ".gguf"));
    return v;
  }());
  return (*files)[seed - 1];
}
std::vector<int32_t> Golden(const Gguf& w, int64_t row) {
  const std::vector<float> all = *w.ReadF32("golden.prompts", {1000, 4});
  return {all.begin() + row * 1000, all.begin() + (row + 1) * 1000};
}
EngineOptions Options(std::vector<LayerMode> fixed = {}) {
  EngineOptions o;
  o.max_tokens = 2048;
  o.layers.fixed = std::move(fixed);
  if (o.layers.fixed.empty()) {
    o.layers.router = "flux_attention";
    o.layers.weights = &Weights();
  }
  return o;
}
std::vector<float> Decode(Engine& e, const std::vector<int32_t>& tokens) {
  std::vector<float> out;
  for (int32_t t : tokens) {
    const std::vector<float> one = Logits(e, {t}, e.length());
    out.insert(out.end(), one.begin(), one.end());
  }
  return out;
}
constexpr LayerMode kF = LayerMode::kFull, kS = LayerMode::kSparse;

TEST(LayerRouting, ForcedFullIsBitIdenticalToDense) {
  EngineOptions dense;
  dense.max_tokens = 2048;
  const std::vector<int32_t> tokens = Golden(Weights(), 0);
  const auto forced = Make(Options({6, kF})), plain = Make(dense);
  EXPECT_EQ(Logits(*forced, tokens, 0), Logits(*plain, tokens, 0));
  ExpectSameCaches(*forced, *plain);
  const std::vector<int32_t> more(tokens.begin(), tokens.begin() + 20);
  EXPECT_EQ(Decode(*forced, more), Decode(*plain, more));
  ExpectSameCaches(*forced, *plain);
}
// Against a model in double precision whose sparse layers see the first keys and the last ones: the
// pattern as its definition has it, not as a router wrote it.
TEST(LayerRouting, ForcedSparseAgreesWithAMaskedModel) {
  constexpr size_t kTokens = 40, kSink = 3, kWindow = 8;
  const std::vector<int32_t> tokens = Tokens(kTokens);
  const std::vector<bool> all(kTokens, true);
  for (const std::vector<LayerMode>& modes :
       {std::vector<LayerMode>(6, kS), std::vector<LayerMode>{kS, kF, kS, kS, kF, kS}}) {
    EngineOptions o = Options(modes);
    o.layers.sparse = o.layers.sparse_decode = "sink_window:sink=3,window=8";
    const auto e = Make(o);
    const std::vector<float> got = Logits(*e, tokens, 0);

    reference::Rows x = reference::Embed(Mini(), tokens);
    int64_t pairs = 0;
    for (size_t layer = 0; layer < 6; ++layer) {
      const bool full = modes[layer] == kF;
      const auto sees = [&](size_t t, size_t j) { return full || j < kSink || j + kWindow > t; };
      for (size_t t = 0; t < kTokens; ++t)
        for (size_t j = 0; j <= t; ++j) pairs += sees(t, j);
      reference::MaskedBlock(Mini().shape, Mini().layers[layer], all, sees, x);
    }
    EXPECT_LE(reference::RelativeError(Mini(), x, got, 97), 1e-5);
    EXPECT_EQ(e->counters().exact_pairs, pairs * Mini().shape.heads);
  }
}
TEST(LayerRouting, AWideWindowIsDense) {
  const std::vector<int32_t> tokens = Golden(Weights(), 1);
  EngineOptions wide = Options({6, kS}), dense;
  dense.max_tokens = 2048;
  wide.layers.sparse = wide.layers.sparse_decode = "sink_window:sink=0,window=4096";
  const std::vector<float> a = Logits(*Make(wide), tokens, 999),
                           b = Logits(*Make(dense), tokens, 999);
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-3);
}
TEST(LayerRouting, ReproducesTheTrainersDecisions) {
  for (int seed = 1; seed <= 3; ++seed) {
    const Gguf& w = Weights(seed);
    const std::vector<float> features = *w.ReadF32("golden.features", {64, 24});
    const std::vector<float> logits = *w.ReadF32("golden.logits", {2, 24});
    for (size_t i = 0; i < 24; ++i) {
      auto r = layer::FluxAttention::Create({static_cast<int64_t>(i % 6)}, w);
      ASSERT_TRUE(r.ok()) << r.status();
      std::vector<float> scratch(r->scratch_floats());
      float got[2];
      r->Logits(&features[i * 64], scratch.data(), got);
      for (size_t k : {0u, 1u}) EXPECT_NEAR(got[k], logits[2 * i + k], 1e-4);
      EXPECT_EQ(layer::FluxAttention::Decide(got), layer::FluxAttention::Decide(&logits[2 * i]));
    }
    EngineOptions o = Options();
    o.layers.weights = &w;
    const auto e = Make(o);
    for (size_t p = 0; p < 4; ++p) {  // end to end: the engine's own features, layer after layer
      e->Reset();
      Logits(*e, Golden(w, static_cast<int64_t>(p)), 999);
      for (size_t layer = 0; layer < 6; ++layer) {
        const float* want = &logits[2 * (p * 6 + layer)];
        EXPECT_NEAR(e->layer_score(static_cast<int64_t>(layer)), std::max(want[0], want[1]), 1e-2)
            << "seed " << seed << " layer " << layer;
        EXPECT_EQ(e->modes()[layer] == kF, want[1] > want[0])
            << "seed " << seed << " layer " << layer;
      }
    }
  }
}
TEST(LayerRouting, ChunksAndThreadsDoNotMatter) {
  const std::vector<int32_t> tokens = Golden(Weights(), 2);
  std::vector<LayerMode> modes;
  for (int64_t chunk : {1000, 512, 77}) {
    EngineOptions o = Options();
    o.chunk = chunk;
    o.threads = chunk == 77 ? 1 : 2;
    const auto e = Make(o);
    Logits(*e, tokens, 999);
    if (modes.empty()) modes = e->modes();
    EXPECT_EQ(e->modes(), modes) << chunk;
  }
  for (size_t n : {1u, 2u, 99u, 100u, 101u, 127u, 128u, 129u, 199u, 201u, 255u,
                   257u}) {  // shorter than the pool, and than twice the pool
    const auto e = Make(Options());
    Logits(*e, {tokens.begin(), tokens.begin() + static_cast<int64_t>(n)}, 0);
    EXPECT_THAT(e->modes(), testing::Not(testing::Contains(LayerMode::kUndecided)));
  }
}
TEST(LayerRouting, DecodeEqualsOnePassUnderTheSameDecisions) {
  const std::vector<int32_t> tokens = Golden(Weights(), 0);
  const std::vector<int32_t> prompt(tokens.begin(), tokens.begin() + 900),
      rest(tokens.begin() + 900, tokens.end());
  const auto e = Make(Options());
  Logits(*e, prompt, 899);
  const std::vector<float> decoded = Decode(*e, rest);
  const std::vector<float> whole = Logits(*Make(Options(e->modes())), tokens, 900);
  ASSERT_EQ(decoded.size(), whole.size());
  for (size_t i = 0; i < whole.size(); ++i) ASSERT_NEAR(decoded[i], whole[i], 2e-3);
}
// An engine holds one sequence, so a batch is engines over one model: their prompts and steps in
// turn, of other lengths and routes, are what each is alone.
TEST(LayerRouting, SequencesInTurnAreAsAlone) {
  struct Sequence {
    EngineOptions options;
    std::vector<int32_t> prompt, rest;
  };
  std::vector<Sequence> batch;
  for (int64_t i = 0; i < 4; ++i) {
    const std::vector<int32_t> tokens = Golden(Weights(), i);
    const auto cut = tokens.begin() + 300 + 150 * i;
    batch.push_back({Options(i == 0 ? std::vector<LayerMode>{kF, kS, kS, kF, kS, kF}
                                    : std::vector<LayerMode>{}),
                     {tokens.begin(), cut},
                     {cut, cut + 12}});
  }

  std::vector<std::unique_ptr<Engine>> engines;
  std::vector<std::vector<float>> got(batch.size());
  const auto feed = [&](size_t i, const std::vector<int32_t>& tokens) {
    const int64_t last = engines[i]->length() + std::ssize(tokens) - 1;
    const std::vector<float> logits = Logits(*engines[i], tokens, last);
    got[i].insert(got[i].end(), logits.begin(), logits.end());
  };
  for (const Sequence& s : batch) engines.push_back(Make(s.options));
  for (size_t i = 0; i < batch.size(); ++i) feed(i, batch[i].prompt);
  for (size_t step = 0; step < 12; ++step)
    for (size_t i = 0; i < batch.size(); ++i) feed(i, {batch[i].rest[step]});

  std::vector<LayerMode> modes;
  for (size_t i = 0; i < batch.size(); ++i) {
    const auto alone = Make(batch[i].options);
    std::vector<float> want = Logits(*alone, batch[i].prompt, std::ssize(batch[i].prompt) - 1);
    const std::vector<float> steps = Decode(*alone, batch[i].rest);
    want.insert(want.end(), steps.begin(), steps.end());
    EXPECT_EQ(got[i], want) << i;
    EXPECT_EQ(engines[i]->modes(), alone->modes()) << i;
    ExpectSameCaches(*engines[i], *alone);
    modes.insert(modes.end(), alone->modes().begin(), alone->modes().end());
  }
  EXPECT_THAT(modes, testing::AllOf(testing::Contains(kF), testing::Contains(kS)));
}
TEST(LayerRouting, DecisionIsFrozenForDecode) {
  const std::vector<int32_t> tokens = Golden(Weights(), 1);
  const auto e = Make(Options());
  Logits(*e, {tokens.begin(), tokens.begin() + 300}, 299);
  const std::vector<LayerMode> modes = e->modes();
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(e->Feed({tokens[i]}, 1 << 20).ok());
  EXPECT_EQ(e->router_calls(), 6);
  EXPECT_EQ(e->modes(), modes);
}
TEST(LayerRouting, EvictionKeepsTheBitsAndBoundsTheReads) {
  const std::vector<int32_t> tokens = Golden(Weights(), 1);
  const std::vector<LayerMode> modes = {kF, kS, kS, kF, kS, kS};
  EngineOptions keep = Options(modes);
  keep.layers.sparse = keep.layers.sparse_decode = "sink_window:sink=20,window=100";
  EngineOptions evict = keep;
  evict.layers.evict = true;
  const auto a = Make(keep), b = Make(evict);
  EXPECT_EQ(Logits(*a, tokens, 900), Logits(*b, tokens, 900));
  EXPECT_EQ(a->cache_rows(1), 1000);
  EXPECT_LE(b->cache_rows(1), 120 + 64);
  int64_t before = b->layer_counters(1).kv_bytes, least = 1 << 30, most = 0;
  for (int i = 0; i < 400; ++i) {
    const int32_t t = tokens[i];
    ASSERT_EQ(Decode(*a, {t}), Decode(*b, {t})) << i;
    EXPECT_LE(b->cache_rows(1), 220 + 64);
    const int64_t now = b->layer_counters(1).kv_bytes;
    least = std::min(least, now - before);
    most = std::max(most, now - before);
    before = now;
  }
  const int64_t block = 64 * 2 * 2 * 64 * 4;  // keys of a block, both sides, two KV heads
  EXPECT_LE(most - least, block);
  EXPECT_EQ(b->cache_rows(0), 1400);
  const std::vector<int32_t> more(tokens.begin(),
                                  tokens.begin() + 300);  // a second turn, longer than a window
  EXPECT_EQ(Logits(*a, more, a->length()), Logits(*b, more, b->length()));
}
TEST(LayerRouting, TriangleAndBlockSelectionRunAsSparseModes) {
  const std::vector<int32_t> tokens = Golden(Weights(), 0);
  EngineOptions streaming = Options({6, kS}), triangle = streaming, blocks = streaming, dense;
  dense.max_tokens = 2048;
  triangle.layers.sparse = "sink_window:sink=64,window=256,last_dense=128";
  blocks.layers.sparse = "mean_pool:k=4";
  const auto s = Make(streaming), t = Make(triangle), b = Make(blocks), d = Make(dense);
  for (Engine* e : {s.get(), t.get(), b.get(), d.get()}) Logits(*e, tokens, 999);
  EXPECT_LT(s->counters().exact_pairs, t->counters().exact_pairs);
  EXPECT_LT(t->counters().exact_pairs, d->counters().exact_pairs);
  EXPECT_LT(b->counters().exact_pairs, d->counters().exact_pairs);
}
// Any attention router may serve the steps of sparse layers, as long as nothing is evicted.
TEST(LayerRouting, StepsMayRunAnyRouter) {
  const std::vector<int32_t> tokens = Golden(Weights(), 0);
  EngineOptions o = Options({6, kS});
  o.layers.sparse_decode = "mean_pool:k=4";
  const auto e = Make(o);
  Logits(*e, {tokens.begin(), tokens.begin() + 600}, 599);
  const int64_t before = e->counters().exact_pairs;
  for (float x : Decode(*e, {tokens[600]})) ASSERT_TRUE(std::isfinite(x));
  const int64_t read = e->counters().exact_pairs - before;
  EXPECT_GT(read, 0);
  EXPECT_LT(read, 6 * Mini().shape.heads * 601);
}
TEST(LayerRouting, BadOptionsAreExplained) {
  const auto message = [](const EngineOptions& o) {
    return std::string(Engine::Create(Mini(), o).status().message());
  };
  EXPECT_THAT(message(Options({kF, kS})), testing::HasSubstr("2 fixed layer modes for 6 layers"));
  // What a step comes back to must still be there.
  EngineOptions o = Options();
  o.layers.evict = true;
  for (const char* decode : {"mean_pool:k=4", "sink_window:last_dense=4", "dense"}) {
    o.layers.sparse_decode = decode;
    EXPECT_THAT(message(o), testing::HasSubstr(decode + std::string("' may come back to any")));
  }
  o = Options();
  o.layers.router = "no_such";
  EXPECT_THAT(message(o), testing::HasSubstr("no method 'no_such'; known: "));
  o.layers.router = "ftp_static";
  EXPECT_THAT(message(o), testing::HasSubstr("cannot route layers here"));
  o.layers.router = "flux_attention";
  o.layers.weights = nullptr;
  EXPECT_THAT(message(o), testing::HasSubstr("needs trained weights"));
}
}  // namespace layer_routing_test
}  // namespace host
SLUICE_END_NAMESPACE
