// A decoder with a Mixture of Experts, against plain loops and against its trainer.
#include "sluice/runtime/host/expert_routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>
#include <filesystem>
#include <numeric>

#include "sluice/runtime/host/generate.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/host/scoring.h"
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
  EXPECT_THAT(said(*dense, "expert/top_k:k=1"), HasSubstr("the model has none"));
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
}  // namespace expert_routing_test
}  // namespace host
SLUICE_END_NAMESPACE
