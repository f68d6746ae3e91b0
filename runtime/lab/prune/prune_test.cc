#include "sluice/runtime/lab/prune/prune.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "sluice/pruners/builtin.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/lab/prune/column_groups.h"
#include "sluice/runtime/lab/prune/input_stats.h"
#include "sluice/runtime/lab/prune/prune_experts.h"
#include "sluice/runtime/lab/prune/prune_heads.h"
#include "sluice/runtime/lab/prune/prune_layers.h"
#include "sluice/runtime/lab/prune/prune_neurons.h"
#include "sluice/runtime/lab/prune/prune_weights.h"
#include "sluice/runtime/text/token_file.h"
#include "sluice/runtime/weights/gguf_writer.h"
#include "sluice/tests/support/random_weights.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace prune_test {
using testing::HasSubstr;
using Stages = std::vector<std::unique_ptr<const WeightPruner>>;
const std::string kMini = host::ModelsFolder() + "/sluice-mini-q8_0.gguf";
const std::string kMoe = host::ModelsFolder() + "/sluice-mini-moe-q8_0.gguf";
const std::string kEval = host::ModelsFolder() + "/sluice-mini-eval.u16";
// A larger model that is not part of the project.
const std::string kReference =
    std::string(SLUICE_SOURCE_DIR) + "/../shared/models/reference-lm-f16.gguf";

std::string Bytes(const std::string& path) {
  std::ifstream f(path, std::ios::binary);
  return {(std::istreambuf_iterator<char>(f)), {}};
}
Stages Make(const std::vector<std::string>& specs) {
  Stages stages;
  for (const std::string& spec : specs) stages.push_back(*BuiltinPruners().pruners.Create(spec));
  return stages;
}
std::string Stored(const GgufTensor& t) { return {reinterpret_cast<const char*>(t.data), t.bytes}; }
// All values but that of `but`, and the order of keys and tensors.
void ExpectSameKeys(const Gguf& a, const Gguf& b, const std::string& but = "") {
  ASSERT_EQ(a.entries().size(), b.entries().size());
  for (size_t i = 0; i < a.entries().size(); ++i) {
    const GgufEntry& x = a.entries()[i];
    const GgufEntry& y = b.entries()[i];
    EXPECT_EQ(x.key, y.key);
    ASSERT_EQ(x.value.size(), y.value.size()) << x.key;
    const bool same = std::memcmp(x.value.data(), y.value.data(), x.value.size()) == 0;
    EXPECT_EQ(same, x.key != but) << x.key;
  }
}

class Prune : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(folder_), nullptr); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Path(const std::string& name) const { return std::string(folder_) + "/" + name; }
  PruneOptions Options() const {
    PruneOptions o;
    o.in = kMini;
    o.out = Path("out.gguf");
    o.calibrate = kEval;
    o.count = 256;
    o.window = 128;
    o.held_out_count = 128;
    return o;
  }
  // Nothing is written where it is refused.
  void Refused(const PruneOptions& o, const std::string& says) const {
    const absl::Status s = RunPrune(o);
    EXPECT_FALSE(s.ok()) << says;
    EXPECT_THAT(std::string(s.message()), HasSubstr(says));
    for (const auto& left : std::filesystem::directory_iterator(folder_))
      EXPECT_EQ(left.path().filename().string().rfind("out", 0), std::string::npos) << left.path();
  }
  char folder_[32] = "/tmp/sluice-prune-XXXXXX";
};

TEST(InputStats, AreThoseOfTheSamples) {
  constexpr int64_t kCols = 150;
  const std::vector<int64_t> lengths = {5, 70, 1};
  const std::vector<float> x = RandomFeatures(76, kCols, 1);
  std::vector<double> sum(kCols), within(kCols), gram(kCols * kCols);
  int64_t begin = 0;
  for (int64_t n : lengths) {
    for (int64_t c = 0; c < kCols; ++c) {
      double mean = 0;
      for (int64_t t = begin; t < begin + n; ++t) mean += x[t * kCols + c] / static_cast<double>(n);
      for (int64_t t = begin; t < begin + n; ++t) {
        sum[c] += x[t * kCols + c];
        within[c] += (x[t * kCols + c] - mean) * (x[t * kCols + c] - mean);
        for (int64_t d = 0; d < kCols; ++d)
          gram[c * kCols + d] += double{x[t * kCols + c]} * double{x[t * kCols + d]};
      }
    }
    begin += n;
  }

  std::vector<float> first;
  for (int threads : {1, 4}) {
    const auto executor = MakeTbbExecutor(threads);
    InputStats stats(kCols, *executor);
    begin = 0;
    for (int64_t n : lengths) {
      stats.BeginSample();
      const int64_t half = n / 2;  // in two passes
      if (half > 0) stats.Add(half, &x[begin * kCols]);
      stats.Add(n - half, &x[(begin + half) * kCols]);
      begin += n;
    }
    const PruneStats s = stats.Read();
    EXPECT_EQ(s.tokens, 76);
    for (int64_t c = 0; c < kCols; ++c) {
      EXPECT_NEAR(s.mean[c], sum[c] / 76, 1e-6);
      EXPECT_NEAR(s.variance[c], within[c] / 76, 1e-5);
      EXPECT_NEAR(s.sum_squares[c], gram[c * kCols + c], 1e-3);
      for (int64_t d = 0; d < kCols; ++d)
        EXPECT_NEAR(s.gram.row(c)[d], gram[c * kCols + d], 1e-3) << c << " " << d;
    }
    if (first.empty()) first.assign(s.gram.data, s.gram.data + kCols * kCols);
    EXPECT_EQ(std::memcmp(first.data(), s.gram.data, first.size() * sizeof(float)), 0);
  }
}

// Drops everything or nothing, and keeps what it was told.
class DropAll final : public WeightPruner {
 public:
  DropAll(bool keep, std::vector<std::vector<float>>& squares) : keep_(keep), squares_(squares) {}
  const PrunerTraits& traits() const override {
    static constexpr PrunerTraits kTraits = {.name = "weight/all", .reads = kPrunerReadsSumSquares};
    return kTraits;
  }
  absl::StatusOr<Mask> Prune(const PruneInputs& in, const RunContext&) const override {
    squares_.emplace_back(in.stats.sum_squares.begin(), in.stats.sum_squares.end());
    return Mask(in.weights.rows, in.weights.cols, keep_);
  }

 private:
  const bool keep_;
  std::vector<std::vector<float>>& squares_;
};
// What every matrix saw, seven a layer, of the first 40 tokens in windows of 16.
std::vector<std::vector<float>> SquaresSeen(bool keep) {
  const Gguf file = *Gguf::Open(kMini);
  host::Model model = *host::LoadModel(kMini);
  std::vector<std::vector<float>> squares;
  Stages stages;
  stages.push_back(std::make_unique<DropAll>(keep, squares));
  const auto pruned =
      PruneWeights(file, model, *ReadTokens(kEval, 0, 40), {.stages = stages, .window = 16});
  EXPECT_TRUE(pruned.ok()) << pruned.status();
  EXPECT_EQ(std::ssize(squares), 7 * model.shape.layers);
  for (const PrunedMatrix& m : pruned->matrices) {
    EXPECT_EQ(m.zeros == m.weights, !keep) << m.name;
    // Where nothing goes in any more, no error is known.
    EXPECT_TRUE(std::isnan(m.error) || std::abs(m.error - (keep ? 0 : 1)) < 1e-5) << m.name;
  }
  return squares;
}
// With nothing left of the layers before it, a layer sees the embedded tokens, normalised.
TEST(PruneWeights, LaterLayersSeeWhatIsLeftOfEarlierOnes) {
  const std::vector<std::vector<float>> squares = SquaresSeen(false);
  const host::Model model = *host::LoadModel(kMini);
  const std::vector<int32_t> tokens = *ReadTokens(kEval, 0, 40);
  const int64_t width = model.shape.width;
  for (int64_t layer : {0, 1, 5}) {
    std::vector<double> want(width);
    for (int32_t t : tokens) {
      const float* x = &model.embed[t * width];
      double mean = 0;
      for (int64_t c = 0; c < width; ++c) mean += double{x[c]} * double{x[c]} / double(width);
      const double scale = 1 / std::sqrt(mean + double{model.shape.eps});
      for (int64_t c = 0; c < width; ++c)
        want[c] += std::pow(x[c] * scale * model.layers[layer].attn_norm[c], 2);
    }
    for (int64_t c = 0; c < width; ++c)
      EXPECT_NEAR(squares[7 * layer][c], want[c], 1e-4 * want[c] + 1e-6) << layer << " " << c;
  }
}
// With nothing gone, every matrix sees what it sees of a sequence that the whole model reads.
TEST(PruneWeights, AllThatStaysSeesTheDenseModel) {
  const std::vector<std::vector<float>> squares = SquaresSeen(true);
  const host::Model model = *host::LoadModel(kMini);
  std::vector<std::vector<double>> want(4 * model.shape.layers);
  host::EngineOptions options;
  options.max_tokens = 16;
  options.on_input = [&](int64_t layer, host::MatrixInput input, int64_t n, const float* x) {
    const size_t place = 4 * layer + static_cast<size_t>(input);
    const size_t cols = squares[7 * layer + (input == host::MatrixInput::kFfnDown ? 6 : 3)].size();
    want[place].resize(cols);
    for (size_t i = 0; i < n * cols; ++i) want[place][i % cols] += double{x[i]} * double{x[i]};
  };
  const auto engine = *host::Engine::Create(model, options);
  const std::vector<int32_t> tokens = *ReadTokens(kEval, 0, 40);
  for (int64_t at = 0; at < 40; at += 16) {
    engine->Reset();
    const int64_t end = std::min<int64_t>(40, at + 16);
    ASSERT_TRUE(engine->Feed({tokens.begin() + at, tokens.begin() + end}, 16).ok());
  }
  constexpr int64_t kInput[] = {0, 0, 0, 1, 2, 2, 3};
  for (int64_t layer = 0; layer < model.shape.layers; ++layer) {
    for (int64_t m = 0; m < 7; ++m) {
      const std::vector<double>& of = want[4 * layer + kInput[m]];
      for (size_t c = 0; c < of.size(); ++c)
        ASSERT_NEAR(squares[7 * layer + m][c], of[c], 1e-4 * of[c] + 1e-6) << layer << " " << m;
    }
  }
}
TEST(PruneWeights, TheInputsOfTheFirstLayerDecideAndMakeUp) {
  const Gguf file = *Gguf::Open(kMini);
  const host::Model dense = *host::LoadModel(kMini);
  const std::vector<int32_t> tokens = *ReadTokens(kEval, 0, 512);
  const auto error = [&](const std::vector<std::string>& specs) {
    host::Model model = dense;
    model.shape.layers = 1;
    const Stages stages = Make(specs);
    const auto pruned = PruneWeights(file, model, tokens,
                                     {.stages = stages, .target = {.ratio = 0.6}, .window = 256});
    EXPECT_TRUE(pruned.ok()) << pruned.status();
    double sum = 0;
    for (const PrunedMatrix& m : pruned->matrices) {
      EXPECT_GE(m.zeros, m.weights * 6 / 10 - m.weights / 100) << m.name;
      sum += m.error;
    }
    return sum / 7;
  };
  const double magnitude = error({"magnitude"});
  const double wanda = error({"wanda"});
  const double repaired = error({"magnitude", "dsnot:growth=1"});
  const double sparse_gpt = error({"sparse_gpt"});
  EXPECT_LT(wanda, magnitude);
  EXPECT_LT(repaired, magnitude);
  EXPECT_LT(sparse_gpt, wanda);
}
TEST(PruneWeights, WhatStaysKeepsItsBitsInEveryType) {
  for (const std::string& path : {kMini, kReference}) {
    if (!std::filesystem::exists(path)) {
      std::printf("skipped: %s is not there\n", path.c_str());
      continue;
    }
    const Gguf file = *Gguf::Open(path);
    host::Model model = *host::LoadModel(path);
    const host::Model dense = model;
    const Stages stages = Make({"magnitude"});
    const auto pruned = PruneWeights(
        file, model, {}, {.stages = stages, .target = {.kind = PruneTarget::Kind::kNofM}});
    ASSERT_TRUE(pruned.ok()) << pruned.status();
    EXPECT_EQ(std::ssize(pruned->tensors), 7 * model.shape.layers);
    for (const auto& [name, bytes] : pruned->tensors) {
      const GgufTensor& was = **file.Tensor(name);
      ASSERT_EQ(bytes.size(), was.bytes);
      GgufTensor is = was;
      is.data = reinterpret_cast<const std::byte*>(bytes.data());
      const std::vector<float> before = GgufDecode(was);
      const std::vector<float> after = GgufDecode(is);
      for (size_t i = 0; i < before.size(); ++i)
        ASSERT_TRUE(after[i] == before[i] || after[i] == 0) << name << " " << i;
      for (size_t i = 0; i < before.size(); i += 4)
        ASSERT_GE(std::count(&after[i], &after[i] + 4, 0.0f), 2) << name << " " << i;
    }
    // The host's weights are those of the file.
    const auto down = GgufDecode(**file.Tensor("blk.0.ffn_down.weight"));
    EXPECT_EQ(dense.layers[0].down, down);
    EXPECT_NE(model.layers[0].down, down);
    EXPECT_EQ(model.embed, dense.embed);
  }
}
TEST(PruneWeights, RepairMayLeaveTheFeedForwardPartAlone) {
  const Gguf file = *Gguf::Open(kMini);
  const std::vector<int32_t> tokens = *ReadTokens(kEval, 0, 256);
  const auto run = [&](const std::vector<std::string>& specs, bool attention_only) {
    host::Model model = *host::LoadModel(kMini);
    model.shape.layers = 1;
    const Stages stages = Make(specs);
    return *PruneWeights(file, model, tokens,
                         {.stages = stages, .repair_attention_only = attention_only});
  };
  const PrunedWeights start = run({"magnitude"}, false);
  const PrunedWeights all = run({"magnitude", "dsnot"}, false);
  const PrunedWeights attention = run({"magnitude", "dsnot"}, true);
  for (const char* name : {"blk.0.attn_q.weight", "blk.0.attn_output.weight"}) {
    EXPECT_NE(all.tensors.at(name), start.tensors.at(name)) << name;
    EXPECT_EQ(attention.tensors.at(name), all.tensors.at(name)) << name;
  }
  for (const char* name : {"blk.0.ffn_gate.weight", "blk.0.ffn_down.weight"}) {
    EXPECT_NE(all.tensors.at(name), start.tensors.at(name)) << name;
    EXPECT_EQ(attention.tensors.at(name), start.tensors.at(name)) << name;
  }
}
TEST(PruneWeights, BadInputIsRefusedByName) {
  const Gguf file = *Gguf::Open(kMini);
  host::Model model = *host::LoadModel(kMini);
  const Stages stages = Make({"magnitude"});
  const auto error = [&](const std::vector<int32_t>& tokens, const PruneTarget& t) {
    return std::string(
        PruneWeights(file, model, tokens, {.stages = stages, .target = t}).status().message());
  };
  EXPECT_THAT(error({1, 70000}, {}), HasSubstr("token 70000 is outside [0, 8192)"));
  EXPECT_THAT(error({}, {.kind = PruneTarget::Kind::kNofM, .n = 2, .m = 5}),
              HasSubstr("blk.0.attn_q.weight: width 384 is no multiple of M = 5"));
  model.layers[2].gate_up[7] = NAN;
  EXPECT_THAT(error({}, {}), HasSubstr("element 7 of tensor 'blk.2.ffn_gate.weight' is nan"));
}

TEST(PruneLayers, TheLeastInfluenceGoes) {
  EXPECT_THAT(*LayersThatStay({0.5, 0.1, 0.3, 0.2}, 0.5), testing::ElementsAre(0, 2));
  EXPECT_THAT(*LayersThatStay({0.5, 0.1, 0.3, 0.2}, 0.3), testing::ElementsAre(0, 2, 3));
  EXPECT_THAT(*LayersThatStay({0.1, 0.1, 0.1}, 0.34), testing::ElementsAre(0, 1));
  EXPECT_THAT(*LayersThatStay({0.1, NAN, 0.2}, 0.34), testing::ElementsAre(0, 2));
  for (double ratio : {0.2, 1.0, -1.0, double{NAN}})
    EXPECT_THAT(std::string(LayersThatStay({0.5, 0.1, 0.3, 0.2}, ratio).status().message()),
                HasSubstr("of 4 layers; allowed: a share by which at least one goes"));
}
// A layer whose output projections are 0 adds nothing: 1 - cos is 0.
TEST(PruneLayers, ALayerThatAddsNothingHasNoInfluence) {
  host::Model model = *host::LoadModel(kMini);
  std::fill(model.layers[3].attn_out.begin(), model.layers[3].attn_out.end(), 0.0f);
  std::fill(model.layers[3].down.begin(), model.layers[3].down.end(), 0.0f);
  const auto influence = LayerInfluence(model, *ReadTokens(kEval, 0, 64), 32, 0);
  ASSERT_TRUE(influence.ok()) << influence.status();
  for (int64_t l = 0; l < model.shape.layers; ++l) {
    if (l == 3) {
      EXPECT_NEAR((*influence)[l], 0, 1e-9);
      continue;
    }
    EXPECT_GT((*influence)[l], 1e-3) << l;
  }
}
TEST(PruneLayers, WhatStaysIsRenumberedAndElseTheSame) {
  const Gguf file = *Gguf::Open(kMini);
  const auto writer = WithLayers(file, {0, 2, 5});
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::string bytes = writer->Bytes();
  const auto out = Gguf::Parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  ASSERT_TRUE(out.ok()) << out.status();
  ExpectSameKeys(file, *out, "llama.block_count");
  EXPECT_EQ(*out->Int("llama.block_count"), 3);
  EXPECT_EQ(out->tensors().size(), file.tensors().size() - 3 * 9);
  for (const auto& [to, from] : {std::pair(0, 0), {1, 2}, {2, 5}}) {
    for (const char* part : {"attn_q", "ffn_norm", "ffn_down"}) {
      const auto name = [&](int l) { return absl::StrCat("blk.", l, ".", part, ".weight"); };
      EXPECT_EQ(Stored(**out->Tensor(name(to))), Stored(**file.Tensor(name(from)))) << name(to);
    }
  }
}

TEST(PruneNeurons, WholeBlocksStay) {
  EXPECT_EQ(NeuronsThatStay(1024, 0.5), 512);
  EXPECT_EQ(NeuronsThatStay(1024, 0.51), 512);
  EXPECT_EQ(NeuronsThatStay(1024, 0.4), 640);
  EXPECT_EQ(NeuronsThatStay(1024, 0), 1024);
  EXPECT_EQ(NeuronsThatStay(40, 0.1), 40);
}
// The cut model computes what the whole one does with the neurons' columns at 0.
TEST(PruneNeurons, CutOutIsTheSameAsZero) {
  const Gguf file = *Gguf::Open(kMini);
  const host::Model model = *host::LoadModel(kMini);
  const int64_t ffn = model.shape.ffn;
  const int64_t width = model.shape.width;
  std::map<std::string, Mask> masks;
  for (int64_t l = 0; l < model.shape.layers; ++l) {
    Mask& mask = masks[absl::StrCat("blk.", l, ".ffn_down.weight")];
    mask = Mask(width, ffn, true);
    for (int64_t c = 0; c < ffn; ++c) {
      for (int64_t r = 0; r < width && (c + l) % 2 == 0; ++r) mask.Set(r, c, false);
    }
  }
  const auto writer = WithoutNeurons(file, masks);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::string bytes = writer->Bytes();
  const auto out = Gguf::Parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  ASSERT_TRUE(out.ok()) << out.status();
  ExpectSameKeys(file, *out, "llama.feed_forward_length");
  EXPECT_EQ(*out->Int("llama.feed_forward_length"), ffn / 2);
  const auto w = static_cast<uint64_t>(width);
  const auto half = static_cast<uint64_t>(ffn / 2);
  for (int64_t l = 0; l < model.shape.layers; ++l) {
    const auto name = [&](const char* part) { return absl::StrCat("blk.", l, ".", part); };
    const auto gate = *out->ReadF32(name("ffn_gate.weight"), {w, half});
    const auto up = *out->ReadF32(name("ffn_up.weight"), {w, half});
    const auto down = *out->ReadF32(name("ffn_down.weight"), {half, w});
    const host::Layer& was = model.layers[l];
    for (int64_t n = 0; n < ffn / 2; ++n) {
      const int64_t from = 2 * n + (l % 2 == 0 ? 1 : 0);
      for (int64_t c = 0; c < width; ++c) {
        ASSERT_EQ(gate[n * width + c], was.gate_up[from * width + c]) << l;
        ASSERT_EQ(up[n * width + c], was.gate_up[(ffn + from) * width + c]) << l;
        ASSERT_NEAR(down[c * ffn / 2 + n], was.down[c * ffn + from], 0.01) << l;
      }
    }
  }
  masks.begin()->second.Set(3, 1, !masks.begin()->second.kept(3, 1));
  EXPECT_THAT(std::string(WithoutNeurons(file, masks).status().message()),
              HasSubstr("weights of column 1; allowed: all or none"));
  masks.erase(masks.begin());
  EXPECT_THAT(std::string(WithoutNeurons(file, masks).status().message()),
              HasSubstr("blk.0.ffn_down.weight keeps 0 neurons"));
}

TEST(PruneHeads, AtLeastOneGoesAndOneStays) {
  EXPECT_EQ(*GroupsThatStay(8, 0.5), 4);
  EXPECT_EQ(*GroupsThatStay(8, 0.6), 4);
  EXPECT_EQ(*GroupsThatStay(2, 0.5), 1);
  for (double ratio : {0.1, 1.0, -0.5, double{NAN}})
    EXPECT_THAT(std::string(GroupsThatStay(2, ratio).status().message()),
                HasSubstr("of 2 KV heads a layer"));
}
TEST(PruneHeads, OfAGroupAtLeastOneGoesAndOneStays) {
  EXPECT_EQ(*QueryHeadsThatStay(4, 2, 0.5), 2);
  EXPECT_EQ(*QueryHeadsThatStay(3, 2, 0.34), 2);
  EXPECT_EQ(*QueryHeadsThatStay(3, 2, 0.9), 1);
  for (double ratio : {0.3, 1.0, -0.5, double{NAN}})
    EXPECT_THAT(std::string(QueryHeadsThatStay(3, 2, ratio).status().message()),
                HasSubstr("of 3 query heads of each of 2 KV heads a layer; allowed: a share by "
                          "which at least one goes and one stays, 1/3 to below 1"));
  EXPECT_THAT(std::string(QueryHeadsThatStay(1, 6, 0.5).status().message()),
              HasSubstr("of two or more"));
}
// Of every group the blocks whose scores sum highest, whatever the other groups hold.
TEST(ColumnGroups, AreMatricesOfTheirOwn) {
  constexpr int64_t kRows = 3;
  constexpr int64_t kGroups = 3;
  constexpr int64_t kBlocks = 4;  // of a group
  constexpr int64_t kWide = 2;
  constexpr int64_t kCols = kGroups * kBlocks * kWide;
  std::vector<float> weights = RandomFeatures(kRows, kCols, 1);
  for (int64_t i = 0; i < kRows * kCols; ++i) {  // the last group's are by far the largest
    if (i % kCols >= 2 * kBlocks * kWide) weights[static_cast<size_t>(i)] *= 100;
  }
  std::vector<float> squares(kCols);
  for (int64_t c = 0; c < kCols; ++c)
    squares[static_cast<size_t>(c)] = static_cast<float>(1 + c % 5);
  PruneInputs in;
  in.weights = {weights.data(), kRows, kCols, kCols};
  in.stats = {.tokens = 7, .sum_squares = squares};
  in.target = {.kind = PruneTarget::Kind::kCount,
               .scope = PruneTarget::Scope::kBlock,
               .count = 2,
               .block_rows = kRows,
               .block_cols = kWide};
  const auto make = [] { return *BuiltinPruners().pruners.Create("weight/wanda"); };
  const auto mask = ColumnGroups(make(), kGroups).Prune(in, {});
  ASSERT_TRUE(mask.ok()) << mask.status();
  for (int64_t g = 0; g < kGroups; ++g) {
    std::vector<std::pair<double, int64_t>> scores;
    for (int64_t b = g * kBlocks; b < (g + 1) * kBlocks; ++b) {
      double score = 0;
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t c = b * kWide; c < (b + 1) * kWide; ++c)
          score += std::abs(double{weights[static_cast<size_t>(r * kCols + c)]}) *
                   std::sqrt(double{squares[static_cast<size_t>(c)]});
      }
      scores.push_back({-score, b});
    }
    std::sort(scores.begin(), scores.end());
    for (int64_t i = 0; i < kBlocks; ++i) {
      const int64_t block = scores[static_cast<size_t>(i)].second;
      for (int64_t c = block * kWide; c < (block + 1) * kWide; ++c)
        EXPECT_EQ(mask->kept(1, c), i < 2) << "group " << g << " column " << c;
    }
  }
  EXPECT_THAT(std::string(ColumnGroups(make(), 5).Prune(in, {}).status().message()),
              HasSubstr("24 columns in 5 groups; allowed: groups of equal width"));
}
// The cut model computes what the whole one does with the heads' columns of attn_output at 0.
class HeadsCutOut : public testing::Test {
 protected:
  // stays(layer, head), of the query heads.
  template <class Stays>
  void CutBy(const Stays& stays) {
    for (int64_t l = 0; l < shape_.layers; ++l) {
      Mask& mask = masks_[absl::StrCat("blk.", l, ".attn_output.weight")];
      mask = Mask(shape_.width, shape_.heads * shape_.head_dim, false);
      for (int64_t r = 0; r < shape_.width; ++r) {
        for (int64_t c = 0; c < mask.cols(); ++c) {
          mask.Set(r, c, stays(l, c / shape_.head_dim));
          if (!mask.kept(r, c)) model_.layers[l].attn_out[r * mask.cols() + c] = 0;
        }
      }
    }
  }
  // The file's heads are these, and it says what the model does.
  void ExpectTheSame(int64_t heads, int64_t kv_heads) {
    const auto writer = WithoutHeads(file_, shape_, masks_);
    ASSERT_TRUE(writer.ok()) << writer.status();
    // Tests of one program run side by side.
    const std::string path =
        absl::StrCat(testing::TempDir(), "/heads-", heads, "-", kv_heads, ".gguf");
    ASSERT_TRUE(writer->Write(path).ok());
    const auto cut = host::LoadModel(path);
    std::filesystem::remove(path);
    ASSERT_TRUE(cut.ok()) << cut.status();
    EXPECT_EQ(cut->shape.heads, heads);
    EXPECT_EQ(cut->shape.kv_heads, kv_heads);
    EXPECT_EQ(cut->shape.head_dim, shape_.head_dim);
    EXPECT_NEAR(Perplexity(*cut) / Perplexity(model_), 1, 1e-5);
  }
  std::string Refusal() const {
    return std::string(WithoutHeads(file_, shape_, masks_).status().message());
  }
  static double Perplexity(const host::Model& m) {
    host::EngineOptions o;
    o.max_tokens = 96;
    const auto engine = *host::Engine::Create(m, o);
    return *host::Perplexity(*engine, *ReadTokens(kEval, 0, 96));
  }

  const Gguf file_ = *Gguf::Open(kMini);
  host::Model model_ = *host::LoadModel(kMini);
  const host::ModelShape shape_ = model_.shape;
  const int64_t shared_ = shape_.heads / shape_.kv_heads;
  std::map<std::string, Mask> masks_;
};
TEST_F(HeadsCutOut, KvHeadsWithTheirQueryHeads) {
  CutBy([&](int64_t layer, int64_t head) { return head / shared_ == layer % 2; });
  ExpectTheSame(shared_, 1);
}
// Another one in every KV head and layer.
TEST_F(HeadsCutOut, QueryHeadsOfEveryKvHead) {
  CutBy([&](int64_t layer, int64_t head) {
    return head % shared_ != (layer + head / shared_) % shared_;
  });
  ExpectTheSame(shape_.heads - shape_.kv_heads, shape_.kv_heads);
}
TEST_F(HeadsCutOut, QueryHeadsAndKvHeads) {
  CutBy([&](int64_t layer, int64_t head) { return head == (layer + 2) % shape_.heads; });
  ExpectTheSame(1, 1);
}
TEST_F(HeadsCutOut, WhatNoFileHoldsIsRefused) {
  CutBy([&](int64_t, int64_t head) { return head != 0; });
  EXPECT_THAT(Refusal(), HasSubstr("blk.0.attn_output.weight keeps 3 query heads of KV head 1 and "
                                   "5 of all 2 KV heads that stay; allowed: as many of each"));
  CutBy([&](int64_t layer, int64_t head) { return layer == 0 ? head % 3 == 0 : head % 3 != 0; });
  EXPECT_THAT(Refusal(), HasSubstr("blk.1.attn_output.weight keeps 4 query and 2 KV heads, another "
                                   "layer 2 and 2; allowed: as many in each"));
  CutBy([&](int64_t layer, int64_t head) { return head / shared_ == layer % 2; });
  Mask& first = masks_.begin()->second;
  for (int64_t r = 0; r < shape_.width; ++r) first.Set(r, 0, false);
  EXPECT_THAT(Refusal(), HasSubstr("allowed: whole heads"));
  masks_.erase(masks_.begin());
  EXPECT_THAT(Refusal(), HasSubstr("blk.0.attn_output.weight keeps 0 query and 0 KV heads"));
}
TEST_F(Prune, QueryHeadsGo) {
  PruneOptions o = Options();
  o.method = "query_heads";
  o.sparsity = 0.34;
  const absl::Status s = RunPrune(o);
  ASSERT_TRUE(s.ok()) << s;
  const auto model = host::LoadModel(o.out);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->shape.kv_heads, 2);
  EXPECT_EQ(model->shape.heads, 4);
  EXPECT_LT(Bytes(o.out).size(), Bytes(kMini).size());
  std::filesystem::remove(o.out);
  o.sparsity = 0.3;
  Refused(o, "allowed: a share by which at least one goes and one stays, 1/3 to below 1");
}
TEST_F(Prune, HeadsGo) {
  PruneOptions o = Options();
  o.method = "heads";
  const absl::Status s = RunPrune(o);
  ASSERT_TRUE(s.ok()) << s;
  const auto model = host::LoadModel(o.out);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->shape.kv_heads, 1);
  EXPECT_EQ(model->shape.heads, 3);
  EXPECT_LT(Bytes(o.out).size(), Bytes(kMini).size());
  std::filesystem::remove(o.out);
  o.sparsity = 0.4;
  Refused(o, "allowed: a share by which at least one goes and one stays, 1/2 to below 1");
}

TEST(PruneExperts, TheLeastUsedGo) {
  const std::vector<std::vector<double>> use = {{4, 1, 3, 2}, {1, 1, 1, 1}, {0, 9, 0, 9}};
  const auto stay = ExpertsThatStay(use, 0.5, 2);
  ASSERT_TRUE(stay.ok()) << stay.status();
  EXPECT_EQ(*stay, (std::vector<std::vector<int64_t>>{{0, 2}, {0, 1}, {1, 3}}));
  EXPECT_EQ(std::ssize((*ExpertsThatStay(use, 0.25, 2))[1]), 3);
  for (double ratio : {0.2, 0.75, 1.0, -0.1, double{NAN}}) {
    EXPECT_THAT(std::string(ExpertsThatStay(use, ratio, 2).status().message()),
                HasSubstr("at least one goes and 2 stay"))
        << ratio;
  }
}
// The cut model is the whole one whose other experts cannot be chosen.
TEST(PruneExperts, CutOutIsTheSameAsNeverChosen) {
  const Gguf file = *Gguf::Open(kMoe);
  host::Model model = *host::LoadModel(kMoe);
  const std::vector<std::vector<int64_t>> stay(static_cast<size_t>(model.shape.layers),
                                               {0, 2, 3, 5, 6, 7});
  const auto writer = WithExperts(file, stay);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::string path = testing::TempDir() + "/experts.gguf";
  ASSERT_TRUE(writer->Write(path).ok());
  const auto cut = host::LoadModel(path);
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(cut->shape.experts, 6);
  ExpectSameKeys(file, *Gguf::Open(path), "llama.expert_count");
  const int64_t each = 2 * model.shape.ffn * model.shape.width;
  for (size_t l = 0; l < model.layers.size(); ++l) {
    const host::Layer& was = model.layers[l];
    const host::Layer& now = cut->layers[l];
    for (int64_t e = 0; e < 6; ++e) {
      const int64_t from = stay[l][static_cast<size_t>(e)];
      EXPECT_TRUE(std::equal(now.gate_up.begin() + e * each, now.gate_up.begin() + (e + 1) * each,
                             was.gate_up.begin() + from * each));
      EXPECT_TRUE(std::equal(now.down.begin() + e * each / 2, now.down.begin() + (e + 1) * each / 2,
                             was.down.begin() + from * each / 2));
      EXPECT_TRUE(std::equal(now.expert_gate.begin() + e * model.shape.width,
                             now.expert_gate.begin() + (e + 1) * model.shape.width,
                             was.expert_gate.begin() + from * model.shape.width));
    }
  }
  auto uneven = stay;
  uneven[1].pop_back();
  EXPECT_THAT(std::string(WithExperts(file, uneven).status().message()),
              HasSubstr("layer 1 keeps 5 experts and layer 0 6"));
  auto absent = stay;
  absent[0][5] = 8;
  EXPECT_THAT(std::string(WithExperts(file, absent).status().message()),
              HasSubstr("has no expert 8 of 8"));
  std::filesystem::remove(path);
}
TEST_F(Prune, ExpertsGoAndWhatIsInThemStays) {
  PruneOptions o = Options();
  o.in = kMoe;
  o.method = "experts";
  o.sparsity = 0.25;
  const absl::Status s = RunPrune(o);
  ASSERT_TRUE(s.ok()) << s;
  const auto model = host::LoadModel(o.out);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->shape.experts, 6);
  o.sparsity = 0.9;
  EXPECT_THAT(std::string(RunPrune(o).message()), HasSubstr("2 stay, as many as a token uses"));
  for (const char* method : {"wanda", "neurons"}) {
    o.method = method;
    EXPECT_THAT(std::string(RunPrune(o).message()), HasSubstr("allowed: layers, experts"));
  }
  o.in = kMini;
  o.method = "experts";
  EXPECT_THAT(std::string(RunPrune(o).message()), HasSubstr("has no experts"));
}

TEST_F(Prune, WritesAModelAndLeavesTheOther) {
  const std::string before = Bytes(kMini);
  for (const char* method : {"magnitude", "sparse_gpt", "dsnot", "layers", "neurons"}) {
    PruneOptions o = Options();
    o.method = method;
    const absl::Status s = RunPrune(o);
    ASSERT_TRUE(s.ok()) << s;
    EXPECT_EQ(Bytes(kMini), before);
    const auto model = host::LoadModel(o.out);
    ASSERT_TRUE(model.ok()) << model.status();
    const Gguf in = *Gguf::Open(kMini);
    const Gguf out = *Gguf::Open(o.out);
    const bool layers = std::string(method) == "layers";
    EXPECT_EQ(model->shape.layers, layers ? 3 : 6);
    const bool neurons = std::string(method) == "neurons";
    ExpectSameKeys(in, out,
                   layers    ? "llama.block_count"
                   : neurons ? "llama.feed_forward_length"
                             : "");
    if (layers || neurons) continue;
    EXPECT_EQ(out.tensor_names(), in.tensor_names());
    for (const auto& [name, t] : out.tensors()) {
      EXPECT_EQ(t.type, in.tensors().at(name).type) << name;
      EXPECT_EQ(Stored(t) == Stored(in.tensors().at(name)),
                name.rfind("blk.", 0) != 0 || name.find("norm") != std::string::npos)
          << name;
    }
  }
}
TEST_F(Prune, NeedsNoTextForWhatReadsNone) {
  PruneOptions o = Options();
  o.method = "magnitude";
  o.calibrate.clear();
  EXPECT_TRUE(RunPrune(o).ok());
  o.out = Path("other.gguf");
  o.held_out = kEval;
  EXPECT_TRUE(RunPrune(o).ok());
  EXPECT_EQ(Bytes(o.out), Bytes(Path("out.gguf")));
  o.out = Path("out2.gguf");
  o.method = "wanda";
  std::filesystem::remove(Path("out.gguf"));
  Refused(o, "weight/wanda reads statistics of a text");
}
TEST_F(Prune, TheFileThatIsReadIsNeverWritten) {
  std::filesystem::copy(kMini, Path("in.gguf"));
  std::filesystem::create_symlink(Path("in.gguf"), Path("link.gguf"));
  std::filesystem::create_hard_link(Path("in.gguf"), Path("hard.gguf"));
  PruneOptions o = Options();
  o.in = Path("in.gguf");
  for (const char* name : {"in.gguf", "link.gguf", "hard.gguf"}) {
    o.out = Path(name);
    Refused(o, "is the file that is read; allowed: another file");
  }
  EXPECT_EQ(Bytes(Path("in.gguf")), Bytes(kMini));
  o.out = Path("no/such/folder");
  Refused(o, "cannot write");
  o.out = folder_;
  Refused(o, "cannot write");
}
// Where the windows lie, as it prints them.
std::vector<int64_t> Printed(const PruneOptions& o) {
  testing::internal::CaptureStdout();
  const absl::Status status = RunPrune(o);
  const std::string said = testing::internal::GetCapturedStdout();
  EXPECT_TRUE(status.ok()) << status;
  const std::string before = "held-out window at ";
  std::vector<int64_t> windows;
  for (size_t at = said.find(before); at != std::string::npos; at = said.find(before, at + 1))
    windows.push_back(std::atoll(said.c_str() + at + before.size()));
  return windows;
}
TEST_F(Prune, HeldOutTokensAreNotCalibratedOn) {
  using testing::ElementsAre;
  PruneOptions o = Options();
  o.method = "magnitude";
  o.out = Path("other.gguf");
  std::ofstream(Path("text.u16"), std::ios::binary) << Bytes(kEval).substr(0, 2 * 2048);
  std::filesystem::create_symlink(Path("text.u16"), Path("same.u16"));
  std::filesystem::copy(Path("text.u16"), Path("copy.u16"));
  o.calibrate = Path("text.u16");
  o.skip = 1000;
  o.count = 512;
  // What follows the calibrated tokens, from their end on or from a place after it.
  o.held_out_count = 4 * 128;
  EXPECT_THAT(Printed(o), ElementsAre(1512, 1640, 1768, 1896));
  o.held_out_skip = 100;
  o.held_out_count = 128;
  EXPECT_THAT(Printed(o), ElementsAre(1740));
  // The same text by another name: windows go round what is calibrated on.
  o.held_out = Path("same.u16");
  o.held_out_count = 11 * 128;
  EXPECT_THAT(Printed(o), ElementsAre(100, 228, 356, 484, 612, 740, 868, 1512, 1640, 1768, 1896));
  o.held_out_count = 12 * 128;
  Refused(o, "12 windows of 128 tokens; allowed: 1 to 11");
  // Another text is held out as a whole.
  o.held_out = Path("copy.u16");
  o.held_out_skip = 1024;
  o.held_out_count = 8 * 128;
  EXPECT_THAT(Printed(o), ElementsAre(1024, 1152, 1280, 1408, 1536, 1664, 1792, 1920));
}
TEST_F(Prune, ErrorsSayWhatWasGivenAndAllowed) {
  const auto with = [&](const auto& change) {
    PruneOptions o = Options();
    change(o);
    return o;
  };
  for (double s : {1.0, -0.1, double{NAN}})
    Refused(with([&](PruneOptions& o) { o.sparsity = s; }), "allowed: 0 to below 1");
  for (const char* p : {"2:1", "2:2", "0:4", "2", "a:b", "4x", "-2:4"})
    Refused(with([&](PruneOptions& o) { o.pattern = p; }), "allowed: N:M with N below M");
  Refused(with([](PruneOptions& o) { o.pattern = "1:4"; }),
          "the pattern 1:4 is a sparsity of 0.75, and 0.5 was given");
  Refused(with([](PruneOptions& o) { o.pattern = "2:5"; }), "is a sparsity of 0.6");
  Refused(with([](PruneOptions& o) { o.pattern = "3x5"; }), "blocks of [3, 5] do not tile");
  Refused(with([](PruneOptions& o) { o.scope = "column"; }), "allowed: row, layer");
  Refused(with([](PruneOptions& o) { o.method = "nothing"; }), "no method 'nothing'");
  Refused(with([](PruneOptions& o) { o.start = "magnitude"; }), "chooses its own mask");
  Refused(with([](PruneOptions& o) {
            o.method = "dsnot";
            o.start = "dsnot";
          }),
          "cannot start one");
  Refused(with([](PruneOptions& o) { o.window = 16385; }), "the model's context of 16384");
  Refused(with([](PruneOptions& o) { o.count = 65537; }), "holds 65536 tokens; asked for 65537");
  Refused(with([](PruneOptions& o) { o.count = 65500; }),
          "a text of 36 tokens is shorter than a window of 128");
  Refused(with([](PruneOptions& o) { o.held_out_skip = 65536; }), "asked for 0 after 65792");
  Refused(with([](PruneOptions& o) { o.held_out_count = 127; }),
          "127 held-out tokens are less than a window of 128");
  Refused(with([](PruneOptions& o) { o.count = 127; }),
          "a calibration text of 127 tokens is shorter than a window of 128");
  Refused(with([](PruneOptions& o) { o.in = kEval; }), "not a GGUF file");
  Refused(with([](PruneOptions& o) {
            o.method = "layers";
            o.sparsity = 0.1;
          }),
          "a share of 0.1 of 6 layers");
  Refused(with([](PruneOptions& o) {
            o.method = "neurons";
            o.sparsity = 0.01;
          }),
          "allowed: a share by which at least one block goes");
}
TEST(ReadPruneTarget, PatternsAndScopes) {
  PruneOptions o;
  o.sparsity = 0.75;
  o.pattern = "2:8";
  auto t = ReadPruneTarget(o);
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_EQ(t->kind, PruneTarget::Kind::kNofM);
  EXPECT_EQ(t->n, 2);
  EXPECT_EQ(t->m, 8);
  o.pattern = "4x16";
  t = ReadPruneTarget(o);
  EXPECT_EQ(t->scope, PruneTarget::Scope::kBlock);
  EXPECT_EQ(t->block_rows, 4);
  EXPECT_EQ(t->block_cols, 16);
  EXPECT_EQ(t->ratio, 0.75);
  o.pattern = "";
  o.scope = "layer";
  EXPECT_EQ(ReadPruneTarget(o)->scope, PruneTarget::Scope::kLayer);
}
}  // namespace prune_test
}  // namespace lab
SLUICE_END_NAMESPACE
