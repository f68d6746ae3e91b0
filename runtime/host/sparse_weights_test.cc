#include "sluice/runtime/host/sparse_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/scoring.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace sparse_weights_test {
using testing::HasSubstr;
const std::string kModels = std::string(SLUICE_SOURCE_DIR) + "/examples/models/";
const Model& Whole(const std::string& name) {
  static std::map<std::string, Model> loaded;
  const auto at = loaded.find(name);
  if (at != loaded.end()) return at->second;
  return loaded.emplace(name, *LoadModel(kModels + name)).first->second;
}
const Model& Mini() { return Whole("sluice-mini-q8_0.gguf"); }
const Model& Experts() { return Whole("sluice-mini-moe-q8_0.gguf"); }

// stays(i, cols), of weight i of a matrix of so many columns, in all of the layers' matrices but
// the gates of experts.
template <class Stays>
Model Thinned(Model model, const Stays& stays) {
  const ModelShape& s = model.shape;
  const auto thin = [&](std::vector<float>& w, int64_t cols) {
    for (int64_t i = 0; i < std::ssize(w); ++i) {
      if (!stays(i, cols)) w[static_cast<size_t>(i)] = 0;
    }
  };
  for (Layer& layer : model.layers) {
    thin(layer.qkv, s.width);
    thin(layer.attn_out, s.heads * s.head_dim);
    thin(layer.gate_up, s.width);
    thin(layer.down, s.ffn);
  }
  return model;
}
bool Scattered(int64_t i, int64_t) {
  return RandomUniform({1, 0, 0, 0, static_cast<uint64_t>(i)}) < 0.3;
}
bool TwoOfFour(int64_t i, int64_t) { return i % 4 == i / 4 % 3 || i % 4 == 3; }
bool Blocks(int64_t i, int64_t cols) { return (i / cols / 16 + i % cols / 16) % 3 == 0; }

// The logits that follow every token, of a prompt and steps of one token.
std::vector<float> Logits(const Model& model, const std::string& how, int threads = 2,
                          LinearCounters* counted = nullptr) {
  const std::vector<int32_t> tokens = EvalTokens(kModels + "sluice-mini-eval.u16", 40);
  EngineOptions o;
  o.max_tokens = 40;
  o.threads = threads;
  o.sparse_weights = how;
  auto engine = Engine::Create(model, o);
  EXPECT_TRUE(engine.ok()) << engine.status();
  std::vector<float> all;
  const auto feed = [&](size_t begin, size_t end) {
    const std::vector<int32_t> some(tokens.begin() + begin, tokens.begin() + end);
    const absl::Status s = (*engine)->Feed(some, 0, [&](int64_t, const float* logits) {
      all.insert(all.end(), logits, logits + model.shape.vocab);
    });
    EXPECT_TRUE(s.ok()) << s;
  };
  feed(0, 30);
  feed(30, 33);
  for (size_t i = 33; i < tokens.size(); ++i) feed(i, i + 1);
  if (counted != nullptr) *counted = (*engine)->linear();
  return all;
}
void ExpectTheSame(const Model& model, const std::string& how) {
  LinearCounters dense;
  LinearCounters sparse;
  const std::vector<float> want = Logits(model, "off", 2, &dense);
  const std::vector<float> got = Logits(model, how, 2, &sparse);
  ASSERT_EQ(got.size(), want.size());
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i)
    worst = std::max(worst, std::abs(double{got[i]} - double{want[i]}));
  EXPECT_LT(worst, 1e-3) << how;  // of logits of some 10
  EXPECT_EQ(Logits(model, how, 1), got) << how;
  EXPECT_LT(sparse.macs, dense.macs) << how;
  EXPECT_LT(sparse.weight_bytes, dense.weight_bytes) << how;
}

TEST(SparseWeights, ComputeWhatThePlainOnesDo) {
  ExpectTheSame(Thinned(Mini(), Scattered), "bitmap");
  ExpectTheSame(Thinned(Mini(), TwoOfFour), "2:4");
  ExpectTheSame(Thinned(Mini(), Blocks), "16x16");
}
// As those of a file of half precision are.
TEST(SparseWeights, HalvesLoseNothing) {
  Model halves = Thinned(Mini(), Scattered);
  for (Layer& layer : halves.layers) {
    for (std::vector<float>* w : {&layer.qkv, &layer.attn_out, &layer.gate_up, &layer.down}) {
      for (float& x : *w) x = F16ToF32(F32ToF16(x));
    }
  }
  ExpectTheSame(halves, "bitmap");
  const SparseWeights::Held held = SparseWeights::Create(halves, "bitmap")->held();
  EXPECT_LT(held.bytes, 2 * held.kept + held.weights / 4);
  halves.layers[0].down[0] = 1.0f + 0x1p-20f;
  const SparseWeights mixed = *SparseWeights::Create(halves, "bitmap");
  const auto type = [&](const std::vector<float>& w) {
    return mixed.Find(w.data(), halves.shape.width, 1)->view().type;
  };
  EXPECT_EQ(type(halves.layers[0].down), DType::kF32);
  EXPECT_EQ(type(halves.layers[1].down), DType::kF16);
}
TEST(SparseWeights, OfExpertsToo) {
  const Model model = Thinned(Experts(), Scattered);
  ExpectTheSame(model, "bitmap");
  const auto held = SparseWeights::Create(model, "bitmap");
  ASSERT_TRUE(held.ok()) << held.status();
  EXPECT_EQ(held->held().matrices, model.shape.layers * (2 + 2 * model.shape.experts));
}
// Few rows for scattered weights, one or many for blocks; whole matrices only.
TEST(SparseWeights, AreUsedWhereTheyAreFaster) {
  const Model model = Thinned(
      Mini(), [](int64_t i, int64_t cols) { return Blocks(i, cols) && TwoOfFour(i, cols); });
  const ModelShape& s = model.shape;
  const float* w = model.layers[1].down.data();
  for (const char* how : {"bitmap", "2:4", "16x16"}) {
    const auto sparse = SparseWeights::Create(model, how);
    ASSERT_TRUE(sparse.ok()) << sparse.status();
    const bool blocks = std::string(how) == "16x16";
    const auto uses = [&](int64_t n) { return sparse->Find(w, s.width, n) != nullptr; };
    EXPECT_TRUE(uses(1)) << how;
    EXPECT_EQ(uses(4), !blocks) << how;
    EXPECT_EQ(uses(200), blocks) << how;
    EXPECT_EQ(sparse->Find(w, s.width / 2, 1), nullptr) << how;
    EXPECT_EQ(sparse->Find(w + s.ffn, s.width, 1), nullptr) << how;
    EXPECT_EQ(sparse->Find(model.embed.data(), s.vocab, 1), nullptr) << how;
    EXPECT_EQ(sparse->held().matrices, 4 * s.layers) << how;
    EXPECT_EQ(sparse->held().of, 4 * s.layers) << how;
    EXPECT_LT(sparse->held().bytes, 4 * sparse->held().weights) << how;
  }
}
// Those that are thin enough are packed, the others stay.
TEST(SparseWeights, MatricesOfAnotherPatternStay) {
  Model model = Mini();
  for (int64_t i = 0; i < std::ssize(model.layers[2].down); ++i) {
    if (!TwoOfFour(i, model.shape.ffn)) model.layers[2].down[static_cast<size_t>(i)] = 0;
  }
  for (const char* how : {"bitmap", "2:4"}) {
    const auto sparse = SparseWeights::Create(model, how);
    ASSERT_TRUE(sparse.ok()) << sparse.status();
    EXPECT_EQ(sparse->held().matrices, 1) << how;
    EXPECT_NE(sparse->Find(model.layers[2].down.data(), model.shape.width, 1), nullptr) << how;
  }
}
TEST(SparseWeights, WhatCannotBeHeldIsSaid) {
  const auto said = [](const std::string& how) {
    return std::string(SparseWeights::Create(Mini(), how).status().message());
  };
  for (const char* how : {"", "on", "2:", "2:4:8", "x16", "4"})
    EXPECT_THAT(said(how), HasSubstr("allowed: off, bitmap, N:M")) << how;
  EXPECT_THAT(said("2:5"), HasSubstr("M a divisor of 16"));
  EXPECT_THAT(said("5:4"), HasSubstr("allowed 1 <= N <= M"));
  EXPECT_THAT(said("16x15"), HasSubstr("columns a multiple of 16"));
  EXPECT_THAT(said("64x64"), HasSubstr("none of the layers' 24 matrices is sparse enough"));
  EXPECT_THAT(said("2:4"), HasSubstr("keeps more than 2 of the 4 columns"));
  EXPECT_THAT(said("bitmap"), HasSubstr("allowed: at most 0.8, or off"));
  EXPECT_EQ(SparseWeights::Create(Mini(), "off")->held().matrices, 0);
  EngineOptions o;
  o.sparse_weights = "bitmap";
  EXPECT_FALSE(Engine::Create(Mini(), o).ok());
}
}  // namespace sparse_weights_test
}  // namespace host
SLUICE_END_NAMESPACE
