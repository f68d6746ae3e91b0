// A decoder with a Mixture of Experts, against plain loops and against its trainer.
#include "sluice/runtime/host/expert_routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "sluice/runtime/host/generate.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/tests/support/model_reference.h"
#include "sluice/tests/support/read_file.h"
#include "sluice/tests/support/tiny_model.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace expert_routing_test {
using testing::HasSubstr;

absl::StatusOr<Model> Written(const TinyModel& m) {
  char folder[] = "/tmp/sluice-experts-XXXXXX";
  EXPECT_NE(mkdtemp(folder), nullptr);
  const std::string path = std::string(folder) + "/model.gguf";
  const absl::Status written = m.Write(path);
  auto model = written.ok() ? LoadModel(path) : absl::StatusOr<Model>(written);
  std::filesystem::remove_all(folder);
  return model;
}
Model Tiny(uint64_t experts = 5, int64_t used = 2) {
  auto model = Written(TinyModel::WithExperts(experts, used));
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}
const Model& Mini() {
  static const Model* m = [] {
    auto loaded = LoadModel(ModelsFolder() + "/sluice-mini-moe-q8_0.gguf");
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return new Model(*std::move(loaded));
  }();
  return *m;
}
std::vector<int32_t> MiniTokens(size_t n) {
  return EvalTokens(ModelsFolder() + "/sluice-mini-moe-eval.u16", n);
}
std::vector<int32_t> Bytes(int64_t n) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    tokens[static_cast<size_t>(i)] = static_cast<int32_t>(i * 37 % 256);
  return tokens;
}
std::unique_ptr<Engine> Make(const Model& m, EngineOptions o, const std::string& policy = "dense") {
  auto e = CreateWithPolicy(m, o, policy);
  EXPECT_TRUE(e.ok()) << policy << ": " << e.status();
  return std::move(*e);
}
// Logits of every token, one row behind the other.
std::vector<float> Logits(Engine& e, const std::vector<int32_t>& tokens) {
  std::vector<float> all;
  const int64_t vocab = e.model().shape.vocab;
  EXPECT_TRUE(e.Feed(tokens, 0, [&](int64_t, const float* l) {
                 all.insert(all.end(), l, l + vocab);
               }).ok());
  return all;
}

TEST(ExpertRouting, ComputesWhatPlainLoopsDo) {
  for (auto [experts, used] : {std::pair<uint64_t, int64_t>{5, 2}, {1, 1}, {3, 3}, {8, 1}}) {
    const Model m = Tiny(experts, used);
    const std::vector<int32_t> tokens = Bytes(23);
    EngineOptions o;
    o.chunk = 9;
    const std::vector<float> got = Logits(*Make(m, o), tokens);
    reference::Rows x = reference::Embed(m, tokens);
    const std::vector<bool> all(tokens.size(), true);
    reference::MaskedBlock(
        m.shape, m.layers[0], all, [](size_t, size_t) { return true; }, x);
    for (size_t t = 0; t < tokens.size(); ++t) {
      const std::vector<double> want = reference::LogitsOf(m, x[t], 1);
      for (size_t v = 0; v < want.size(); ++v)
        ASSERT_NEAR(got[t * want.size() + v], want[v], 2e-4) << experts << "/" << used << " " << t;
    }
  }
}

TEST(ExpertRouting, MatchesTheTrainersLikelihoods) {
  const std::vector<float> golden =
      ReadFile<float>(ModelsFolder() + "/sluice-mini-moe-golden-nll.f32");
  ASSERT_EQ(golden.size(), 511u);
  EngineOptions o;
  o.max_tokens = 512;
  o.chunk = 200;
  std::vector<float> nll;
  ASSERT_TRUE(Perplexity(*Make(Mini(), o), MiniTokens(512), &nll).ok());
  ASSERT_EQ(nll.size(), golden.size());
  // Where two experts score alike to the last bits, rounding chooses: rare, and then of little
  // weight to the mean.
  double off = 0;
  for (size_t i = 0; i < nll.size(); ++i) off += std::abs(nll[i] - golden[i]);
  EXPECT_LT(off / static_cast<double>(nll.size()), 1e-3);
}

TEST(ExpertRouting, TheModelsOwnRouterIsTopK) {
  const std::vector<int32_t> tokens = MiniTokens(300);
  EngineOptions o;
  o.max_tokens = 300;
  o.chunk = 128;
  const std::vector<float> own = Logits(*Make(Mini(), o), tokens);
  for (const char* same :
       {"expert/top_k", "expert/top_k:k=2", "expert/top_k:k=2,score=logit,renormalise=softmax"}) {
    const std::vector<float> got = Logits(*Make(Mini(), o, same), tokens);
    float worst = 0;
    for (size_t i = 0; i < own.size(); ++i) worst = std::max(worst, std::abs(own[i] - got[i]));
    EXPECT_LT(worst, 1e-3) << same;
    if (std::string(same).find("logit") == std::string::npos) {
      EXPECT_EQ(own, got) << same;
    }
  }
}

TEST(ExpertRouting, WorkFallsWithTheExpertsOfAToken) {
  const std::vector<int32_t> tokens = MiniTokens(256);
  const ModelShape& s = Mini().shape;
  EngineOptions o;
  o.max_tokens = 256;
  int64_t macs[9] = {};
  for (int64_t k : {1, 2, 4, 8}) {
    auto e = Make(Mini(), o, absl::StrCat("expert/top_k:k=", k));
    Logits(*e, tokens);
    macs[k] = e->linear().macs;
    for (int64_t layer = 0; layer < s.layers; ++layer) {
      int64_t rows = 0;
      for (int64_t x = 0; x < s.experts; ++x) rows += e->expert_rows(layer, x);
      EXPECT_EQ(rows, k * std::ssize(tokens)) << layer;
    }
    e->Reset();
    EXPECT_EQ(e->expert_rows(0, 0), 0);
  }
  const int64_t of_one = s.layers * std::ssize(tokens) * 3 * s.width * s.ffn;
  EXPECT_EQ(macs[2] - macs[1], of_one);
  EXPECT_EQ(macs[4] - macs[2], 2 * of_one);
  EXPECT_EQ(macs[8] - macs[4], 4 * of_one);
}

TEST(ExpertRouting, DecodeEqualsPrefillAndThreadsDoNotMatter) {
  const std::vector<int32_t> prompt = MiniTokens(200);
  std::vector<std::vector<int32_t>> out;
  for (auto [chunk, threads] : {std::pair<int64_t, int>{512, 1}, {64, 2}, {1, 2}}) {
    EngineOptions o;
    o.max_tokens = 240;
    o.chunk = chunk;
    o.threads = threads;
    auto made = Generate(*Make(Mini(), o), prompt, 20);
    ASSERT_TRUE(made.ok()) << made.status();
    out.push_back(*made);
  }
  EXPECT_EQ(out[0], out[1]);
  EXPECT_EQ(out[0], out[2]);
}

// Panels that end within a matrix, tiles of fewer tokens than an expert takes, and a prompt's end
// that goes the other way.
TEST(ExpertRouting, PackedExpertsComputeWhatPlainOnesDo) {
  const Model tiny = Tiny(5, 2);
  for (const Model* m : {&tiny, &Mini()}) {
    const std::vector<int32_t> tokens = m == &tiny ? Bytes(70) : MiniTokens(150);
    EngineOptions o;
    o.chunk = m == &tiny ? 40 : 128;
    o.max_tokens = std::ssize(tokens);
    o.threads = 2;
    const auto plain = Make(*m, o);
    const std::vector<float> want = Logits(*plain, tokens);
    o.experts.packed = true;
    const auto packed = Make(*m, o);
    const std::vector<float> got = Logits(*packed, tokens);
    ASSERT_EQ(got.size(), want.size());
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i)
      worst = std::max(worst, std::abs(double{got[i]} - double{want[i]}));
    EXPECT_LT(worst, 1e-3);
    EXPECT_NE(got, want);  // it did go another way
    for (int64_t e = 0; e < m->shape.experts; ++e)
      EXPECT_EQ(packed->expert_rows(0, e), plain->expert_rows(0, e)) << e;
    EXPECT_EQ(packed->linear().macs, plain->linear().macs);
    EXPECT_EQ(packed->linear().weight_bytes, plain->linear().weight_bytes);
    o.threads = 1;
    EXPECT_EQ(Logits(*Make(*m, o), tokens), got);
  }
}
TEST(ExpertRouting, RefusesToPackWhatItCannot) {
  const Model dense = *LoadModel(ModelsFolder() + "/sluice-mini-q8_0.gguf");
  Model relu = Tiny();
  relu.shape.activation = Activation::kRelu;
  EngineOptions o;
  o.experts.packed = true;
  EXPECT_THAT(std::string(Engine::Create(dense, o).status().message()),
              HasSubstr("a model that has none; allowed: a Mixture of Experts"));
  EXPECT_THAT(std::string(Engine::Create(relu, o).status().message()), HasSubstr("allowed: SiLU"));
}
TEST(ExpertRouting, OtherExpertRoutersRunInItsPlace) {
  const std::vector<int32_t> tokens = MiniTokens(256);
  for (const char* policy : {"expert/graph_of_tokens", "expert/hydra:chunk=16",
                             "expert/expert_choice:thresholds=0.25"}) {
    EngineOptions o;
    o.max_tokens = 256;
    o.chunk = 128;
    const auto perplexity = Perplexity(*Make(Mini(), o, policy), tokens);
    ASSERT_TRUE(perplexity.ok()) << policy << ": " << perplexity.status();
    EXPECT_GT(*perplexity, 1) << policy;
  }
}

TEST(ExpertRouting, RefusesWhatCannotBe) {
  const auto said = [](const Model& m, const std::string& policy) {
    return std::string(CreateWithPolicy(m, {}, policy).status().message());
  };
  const auto dense = Written({});
  ASSERT_TRUE(dense.ok()) << dense.status();
  EXPECT_THAT(said(*dense, "expert/top_k:k=1"), HasSubstr("the model has no experts and no gate"));
  EXPECT_THAT(said(Tiny(), "expert/top_k:k=9"), HasSubstr("9"));
  EXPECT_THAT(said(Tiny(), "expert/product_key_memory"), HasSubstr("expert"));
  EXPECT_THAT(said(Tiny(), "adapter/polytropon"), HasSubstr("which this method does not"));

  struct Case {
    int64_t experts, used;
  };
  for (const Case c : {Case{0, 2}, Case{5, 0}, Case{5, 6}, Case{-1, 1}, Case{1 << 20, 2}}) {
    TinyModel m = TinyModel::WithExperts(5, 2);
    m.keys["llama.expert_count"] = c.experts;
    m.keys["llama.expert_used_count"] = c.used;
    const auto model = Written(m);
    ASSERT_FALSE(model.ok()) << c.experts << " " << c.used;
    EXPECT_THAT(model.status().message(), HasSubstr(absl::StrCat("is ", c.experts)));
  }
  TinyModel shape = TinyModel::WithExperts(5, 2);
  shape.tensors["blk.0.ffn_up_exps.weight"] = {32, 64, 4};
  EXPECT_THAT(Written(shape).status().message(), HasSubstr("ffn_up_exps"));
  TinyModel missing = TinyModel::WithExperts(5, 2);
  missing.tensors.erase("blk.0.ffn_gate_inp.weight");
  EXPECT_THAT(Written(missing).status().message(), HasSubstr("ffn_gate_inp"));
  TinyModel shared = TinyModel::WithExperts(5, 2);
  shared.tensors["blk.0.ffn_up_shexp.weight"] = {32, 64};
  EXPECT_THAT(Written(shared).status().message(), HasSubstr("'blk.0.ffn_up_shexp.weight'"));
}

// SmallThinker in plain loops, from its description: what enters a layer scores the experts, q and
// k are as in the file and rotate by halves, and three layers of four see `window` keys.
std::vector<std::vector<double>> SmallThinkerLogits(const std::string& path,
                                                    const std::vector<int32_t>& tokens,
                                                    int64_t window, bool sigmoid) {
  const Gguf f = *Gguf::Open(path);
  const auto size = [&](const char* key) { return *f.Int(std::string("smallthinker.") + key); };
  const int64_t layers = size("block_count");
  const int64_t experts = size("expert_count");
  const int64_t used = size("expert_used_count");
  constexpr int64_t kWidth = TinyModel::kWidth;
  constexpr int64_t kD = TinyModel::kHeadDim;
  constexpr int64_t kFfn = TinyModel::kFfn;
  using Vector = std::vector<double>;
  const auto read = [&](const std::string& name, std::vector<uint64_t> shape) {
    const std::vector<float> w = *f.ReadF32(name + ".weight", shape);
    return Vector(w.begin(), w.end());
  };
  // W [out, in] x, from row `first` on.
  const auto times = [](const Vector& w, const Vector& x, int64_t first, int64_t out) {
    Vector y(out);
    for (int64_t o = 0; o < out; ++o) {
      for (size_t i = 0; i < x.size(); ++i) y[o] += w[(first + o) * std::ssize(x) + i] * x[i];
    }
    return y;
  };
  const auto norm = [](const Vector& x, const Vector& w) {
    double square = 0;
    for (double v : x) square += v * v / static_cast<double>(x.size());
    Vector y;
    for (size_t i = 0; i < x.size(); ++i) y.push_back(x[i] / std::sqrt(square + 1e-5) * w[i]);
    return y;
  };
  const auto turn = [](Vector& x, int64_t position) {
    for (int64_t h = 0; h < std::ssize(x) / kD; ++h) {
      for (int64_t i = 0; i < kD / 2; ++i) {
        const double angle = static_cast<double>(position) * std::pow(10000.0, -2.0 * i / kD);
        double& a = x[h * kD + i];
        double& b = x[h * kD + i + kD / 2];
        const double was = a;
        a = was * std::cos(angle) - b * std::sin(angle);
        b = was * std::sin(angle) + b * std::cos(angle);
      }
    }
  };

  const Vector embed = read("token_embd", {kWidth, 257});
  std::vector<Vector> x;
  for (int32_t t : tokens)
    x.emplace_back(embed.begin() + t * kWidth, embed.begin() + (t + 1) * kWidth);
  for (int64_t l = 0; l < layers; ++l) {
    const std::string at = "blk." + std::to_string(l) + ".";
    const auto e = static_cast<uint64_t>(experts);
    const Vector gate_inp = read(at + "ffn_gate_inp", {kWidth, e});
    const Vector gate = read(at + "ffn_gate_exps", {kWidth, kFfn, e});
    const Vector up = read(at + "ffn_up_exps", {kWidth, kFfn, e});
    const Vector down = read(at + "ffn_down_exps", {kFfn, kWidth, e});
    const Vector wq = read(at + "attn_q", {kWidth, 32});
    const Vector wk = read(at + "attn_k", {kWidth, 16});
    const Vector wv = read(at + "attn_v", {kWidth, 16});
    const Vector wo = read(at + "attn_output", {32, kWidth});
    const Vector attn_norm = read(at + "attn_norm", {kWidth});
    const Vector ffn_norm = read(at + "ffn_norm", {kWidth});
    const bool full = l % 4 == 0;
    std::vector<Vector> q, k, v;
    for (size_t t = 0; t < x.size(); ++t) {
      const Vector h = norm(x[t], attn_norm);
      q.push_back(times(wq, h, 0, 32));
      k.push_back(times(wk, h, 0, 16));
      v.push_back(times(wv, h, 0, 16));
      if (window > 0 && full) continue;
      turn(q[t], static_cast<int64_t>(t));
      turn(k[t], static_cast<int64_t>(t));
    }
    for (int64_t t = 0; t < std::ssize(x); ++t) {
      const Vector score = times(gate_inp, x[t], 0, experts);  // before attention
      Vector mix(32);
      for (int64_t h = 0; h < TinyModel::kHeads; ++h) {
        const int64_t kv = h / 2;
        double sum = 0;
        for (int64_t j = 0; j <= t; ++j) {
          if (window > 0 && !full && t - j >= window) continue;
          double dot = 0;
          for (int64_t i = 0; i < kD; ++i) dot += q[t][h * kD + i] * k[j][kv * kD + i];
          const double p = std::exp(dot / std::sqrt(static_cast<double>(kD)));
          sum += p;
          for (int64_t i = 0; i < kD; ++i) mix[h * kD + i] += p * v[j][kv * kD + i];
        }
        for (int64_t i = 0; i < kD; ++i) mix[h * kD + i] /= sum;
      }
      const Vector o = times(wo, mix, 0, kWidth);
      for (int64_t i = 0; i < kWidth; ++i) x[t][i] += o[i];

      const Vector h = norm(x[t], ffn_norm);
      std::vector<int64_t> order(experts);
      std::iota(order.begin(), order.end(), int64_t{0});
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return score[a] > score[b]; });
      Vector weight(experts);
      double sum = 0;
      for (int64_t c = 0; c < used; ++c) {
        const double z = score[order[c]];
        weight[order[c]] = sigmoid ? 1 / (1 + std::exp(-z)) : std::exp(z);
        sum += weight[order[c]];
      }
      for (int64_t c = 0; c < experts; ++c) {
        if (weight[c] == 0) continue;
        Vector act = times(gate, h, c * kFfn, kFfn);
        const Vector by = times(up, h, c * kFfn, kFfn);
        for (int64_t i = 0; i < kFfn; ++i) act[i] = std::max(act[i], 0.0) * by[i];
        const Vector y = times(down, act, c * kWidth, kWidth);
        for (int64_t i = 0; i < kWidth; ++i) x[t][i] += weight[c] / sum * y[i];
      }
    }
  }
  const Vector last = read("output_norm", {kWidth});
  std::vector<Vector> logits;
  for (const Vector& state : x) logits.push_back(times(embed, norm(state, last), 0, 257));
  return logits;
}
class SmallThinkerFile : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(folder_), nullptr); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Path() const { return std::string(folder_) + "/model.gguf"; }
  absl::StatusOr<Model> Load(const TinyModel& m) const {
    const absl::Status written = m.Write(Path());
    if (!written.ok()) return written;
    return LoadModel(Path());
  }
  char folder_[32] = "/tmp/sluice-early-XXXXXX";
};

TEST_F(SmallThinkerFile, ComputesWhatPlainLoopsDo) {
  struct Case {
    int64_t layers, window;
    uint64_t experts;
    int64_t used;
    bool sigmoid;
  };
  const std::vector<int32_t> tokens = Bytes(29);
  for (const Case c : {Case{1, 0, 5, 2, true},
                       {2, 0, 4, 2, false},
                       {5, 6, 5, 2, true},
                       {5, 64, 3, 3, false},
                       {2, 1, 5, 1, true}}) {
    TinyModel file = TinyModel::SmallThinker(c.layers, c.window, c.experts, c.used);
    if (!c.sigmoid) file.keys["smallthinker.expert_gating_func"] = int64_t{1};
    const auto m = Load(file);
    ASSERT_TRUE(m.ok()) << m.status();
    EngineOptions o;
    o.chunk = 8;
    const std::vector<float> got = Logits(*Make(*m, o), tokens);
    const auto want = SmallThinkerLogits(Path(), tokens, c.window, c.sigmoid);
    for (size_t t = 0; t < tokens.size(); ++t) {
      for (size_t v = 0; v < want[t].size(); ++v)
        ASSERT_NEAR(got[t * want[t].size() + v], want[t][v], 1e-3)
            << c.layers << " layers, window " << c.window << ", token " << t;
    }
    // The method of that name, with its gates from the file, is what the model does by itself.
    const std::string same = absl::StrCat("expert/small_thinker:weights=", Path(),
                                          ",score=", c.sigmoid ? "sigmoid" : "softmax");
    const std::vector<float> named = Logits(*Make(*m, o, same), tokens);
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(named[i], got[i], 1e-4) << same;
  }
}
TEST_F(SmallThinkerFile, StepsAreThePromptAndThreadsDoNotMatter) {
  const auto m = Load(TinyModel::SmallThinker(6, 5));
  ASSERT_TRUE(m.ok()) << m.status();
  const std::vector<int32_t> tokens = Bytes(24);
  EngineOptions o;
  o.threads = 1;
  const std::vector<float> whole = Logits(*Make(*m, o), tokens);
  o.threads = 2;
  EXPECT_EQ(Logits(*Make(*m, o), tokens), whole);
  const auto steps = Make(*m, o);
  std::vector<float> got;
  for (int32_t t : tokens) {
    const std::vector<float> one = Logits(*steps, {t});
    got.insert(got.end(), one.end() - m->shape.vocab, one.end());
  }
  ASSERT_EQ(got.size(), whole.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], whole[i], 1e-4) << i;
}
TEST_F(SmallThinkerFile, RefusesWhatItDoesNotCompute) {
  const auto says = [&](const std::string& key, GgufValue value, const std::string& said) {
    TinyModel m = TinyModel::SmallThinker(2, 6);
    m.keys["smallthinker." + key] = std::move(value);
    EXPECT_THAT(Load(m).status().message(),
                testing::AllOf(HasSubstr("smallthinker." + key), HasSubstr(said)));
  };
  says("expert_gating_func", int64_t{3}, "is 3; implemented: 1 (softmax), 2 (sigmoid)");
  says("expert_count", int64_t{0}, "is 0");
  says("expert_used_count", int64_t{6}, "6; allowed: 1 to");
  says("attention.sliding_window", int64_t{-1}, "is -1; allowed: 0");
  says("attention.sliding_window_pattern", int64_t{2}, "is 2; implemented: 4");
  says("rope.freq_base_swa", 500.0, "is 500; implemented: 10000");
  says("expert_weights_scale", 2.5, "is 2.5; implemented: 1");
  says("expert_weights_norm", false, "is false; implemented: true");
  says("expert_shared_count", int64_t{1}, "not implemented");
  says("rope.scaling.factor", 2.0, "not implemented");
  TinyModel missing = TinyModel::SmallThinker(1, 0);
  missing.keys.erase("smallthinker.expert_gating_func");
  EXPECT_THAT(Load(missing).status().message(), HasSubstr("smallthinker.expert_gating_func"));
  TinyModel bias = TinyModel::SmallThinker(1, 0);
  bias.tensors["blk.0.attn_q.bias"] = {32};
  EXPECT_THAT(Load(bias).status().message(), HasSubstr("'blk.0.attn_q.bias'"));
  TinyModel llama = TinyModel::WithExperts(5, 2);
  llama.keys["llama.expert_gating_func"] = int64_t{2};
  EXPECT_THAT(Written(llama).status().message(), HasSubstr("llama.expert_gating_func"));
  TinyModel other;
  other.keys["general.architecture"] = std::string("mamba");
  EXPECT_THAT(Written(other).status().message(), HasSubstr("'llama', 'smallthinker'"));

  const auto m = Load(TinyModel::SmallThinker(4, 6));
  ASSERT_TRUE(m.ok()) << m.status();
  const auto refused = [&](const EngineOptions& o) {
    return std::string(Engine::Create(*m, o).status().message());
  };
  EngineOptions tokens;
  tokens.tokens.router = "token/informed_routing";
  EXPECT_THAT(refused(tokens), HasSubstr("chosen for every token before attention"));
  EngineOptions pruned;
  pruned.pruning.router = "token/random";
  pruned.pruning.sparsity = std::vector<double>(4, 0.1);
  EXPECT_THAT(refused(pruned), HasSubstr("slide over 6 keys"));
}
}  // namespace expert_routing_test
}  // namespace host
SLUICE_END_NAMESPACE
