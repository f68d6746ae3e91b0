// The encoder host: goldens of the trainer, equalities of routed and pruned layers, what a pruned
// file holds.
#include "sluice/runtime/text/encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "sluice/pruners/common/freeze.h"
#include "sluice/pruners/head/shrp/shrp_reference.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace encoder_test {
const std::string kModels = std::string(SLUICE_SOURCE_DIR) + "/examples/models/";
Gguf Open(const std::string& name) {
  auto f = Gguf::Open(kModels + name);
  EXPECT_TRUE(f.ok()) << f.status();
  return *std::move(f);
}
const Gguf& DenseFile() {
  static const auto* f = new Gguf(Open("intent-encoder-q8_0.gguf"));
  return *f;
}
const Gguf& RoutedFile() {
  static const auto* f = new Gguf(Open("shrp-half-routed-s1.gguf"));
  return *f;
}
const Encoder& Dense() {
  static const auto* e = new Encoder(*Encoder::Load(DenseFile()));
  return *e;
}
const Encoder& Routed() {
  static const auto* e = new Encoder(*Encoder::Load(DenseFile(), &RoutedFile()));
  return *e;
}
std::vector<int32_t> Tokens(int64_t n, uint64_t seed) {
  std::vector<int32_t> t;
  for (int64_t i = 0; i < n; ++i)
    t.push_back(
        static_cast<int32_t>(RandomBits({seed, 0, 0, 0, static_cast<uint64_t>(i)}) % 8000 + 1));
  return t;
}
std::vector<std::vector<int32_t>> Batch() {
  return {Tokens(1, 1), Tokens(128, 2), Tokens(7, 3), Tokens(64, 4), Tokens(65, 5)};
}
Encoder::Result Infer(const Encoder& e, const std::vector<std::vector<int32_t>>& ids,
                      const std::vector<int32_t>& forced = {}) {
  InlineExecutor one;
  auto r = e.Run(ids, one, forced);
  EXPECT_TRUE(r.ok()) << r.status();
  return *std::move(r);
}
void ExpectGolden(const Gguf& file, const Encoder& e, const std::string& name) {
  const std::vector<float> stored =
      *file.ReadF32("golden.ids", {(*file.Tensor("golden.ids"))->elements});
  std::vector<std::vector<int32_t>> ids;
  for (size_t at = 0; at < stored.size(); at += 1 + static_cast<size_t>(stored[at]))
    ids.emplace_back(
        stored.begin() + static_cast<int64_t>(at) + 1,
        stored.begin() + static_cast<int64_t>(at) + 1 + static_cast<int64_t>(stored[at]));
  const uint64_t classes = e.labels().size();
  const std::vector<float> want = *file.ReadF32("golden.logits", {classes, ids.size()});
  const Encoder::Result got = Infer(e, ids);
  for (size_t i = 0; i < want.size(); ++i)
    ASSERT_NEAR(got.logits[i], want[i], 1e-4 * std::max(1.0f, std::abs(want[i]))) << name;
  if (file.tensors().count("golden.picks") == 0) return;
  const std::vector<float> picks = *file.ReadF32("golden.picks", {6, ids.size()});
  for (size_t i = 0; i < ids.size(); ++i)
    for (size_t l = 0; l < 6; ++l)
      ASSERT_EQ(got.picks[i * 12 + 6 + l], static_cast<int32_t>(picks[6 * i + l])) << name;
}
TEST(Encoder, ReproducesTheTrainer) {
  ExpectGolden(DenseFile(), Dense(), "dense");
  ExpectGolden(RoutedFile(), Routed(), "routed");
  for (const char* run : {"half", "most"}) {
    for (const char* head : {"usage", "random"}) {
      for (int seed = 1; seed <= 5; ++seed) {
        const std::string name = absl::StrCat("shrp-", run, "-", head, "_head-s", seed, ".gguf");
        const Gguf f = Open(name);
        auto e = Encoder::Load(DenseFile(), &f);
        ASSERT_TRUE(e.ok()) << e.status();
        ExpectGolden(f, *e, name);
      }
    }
  }
}
TEST(Encoder, NeighboursAndThreadsDoNotMatter) {
  const auto batch = Batch();
  const auto threads = MakeTbbExecutor();
  for (const Encoder* e : {&Dense(), &Routed()}) {
    const Encoder::Result all = *e->Run(batch, *threads);
    for (size_t i = 0; i < batch.size(); ++i) {
      const Encoder::Result one = Infer(*e, {batch[i]});
      for (size_t c = 0; c < one.logits.size(); ++c)
        EXPECT_EQ(one.logits[c], all.logits[i * one.logits.size() + c]);
    }
  }
}
TEST(Encoder, RoutedAndPrunedAgreeBitForBitWhereTheKeptHeadIsPicked) {
  const Encoder cut = Routed().Pruned();
  std::vector<int32_t> kept(12, -1);
  for (size_t l = 6; l < 12; ++l)
    kept[l] =
        static_cast<int32_t>(pruning::MostUsed(absl::MakeConstSpan(Routed().layers()[l].usage)));
  const Encoder::Result pruned = Infer(cut, Batch());
  EXPECT_EQ(Infer(Routed(), Batch(), kept).logits, pruned.logits);
  const Encoder::Result routed = Infer(Routed(), Batch());
  int64_t same = 0;
  for (size_t i = 0; i < Batch().size(); ++i) {
    if (!std::equal(kept.begin() + 6, kept.end(),
                    routed.picks.begin() + static_cast<int64_t>(12 * i + 6)))
      continue;
    ++same;
    for (size_t c = 0; c < 18; ++c) EXPECT_EQ(routed.logits[18 * i + c], pruned.logits[18 * i + c]);
  }
  EXPECT_GT(same, 0);
  // Every other choice of one head is a model of its own.
  std::vector<int32_t> other = kept;
  other[8] = (other[8] + 1) % 12;
  EXPECT_NE(Infer(Routed(), Batch(), other).logits, pruned.logits);
}
// The routed conversion with its heads in another order and, where `used` is a head, that one alone
// counted as used.
std::string Reordered(const std::vector<size_t>& order, int used = -1) {
  GgufWriter w;
  for (const auto& [key, value] : RoutedFile().values()) w.Set(key, value);
  for (const auto& [name, t] : RoutedFile().tensors()) {
    const bool of_heads = name.find(".shrp.q.") != std::string::npos ||
                          name.find(".shrp.k.") != std::string::npos ||
                          name.find(".shrp.v.") != std::string::npos ||
                          name.find(".shrp.router.") != std::string::npos ||
                          name.find(".shrp.usage") != std::string::npos;
    if (!of_heads) {
      w.Copy(t);
      continue;
    }
    const std::vector<float> from = *RoutedFile().ReadF32(name, t.shape);
    std::vector<float> to(from.size());
    const size_t part = from.size() / order.size();
    for (size_t h = 0; h < order.size(); ++h)
      for (size_t i = 0; i < part; ++i) to[h * part + i] = from[order[h] * part + i];
    if (name.find(".shrp.usage") != std::string::npos && used >= 0)
      for (size_t h = 0; h < to.size(); ++h) to[h] = static_cast<int>(h) == used ? 1.0f : 0.0f;
    EXPECT_TRUE(w.Add(name, t.shape, to).ok()) << name;
  }
  return w.Bytes();
}
Encoder Converted(const std::string& bytes) {
  const auto file = Gguf::Parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  EXPECT_TRUE(file.ok()) << file.status();
  auto e = Encoder::Load(DenseFile(), &*file);
  EXPECT_TRUE(e.ok()) << e.status();
  return *std::move(e);
}
TEST(Encoder, PermutedHeadsPermuteThePicksAndDeployTheSameFunction) {
  std::vector<size_t> order(12), as_they_are(12);
  for (size_t h = 0; h < 12; ++h) {
    order[h] = (5 * h + 3) % 12;
    as_they_are[h] = h;
  }
  EXPECT_EQ(Infer(Converted(Reordered(as_they_are)), Batch()).logits,
            Infer(Routed(), Batch()).logits);
  const Encoder permuted = Converted(Reordered(order));
  const Encoder::Result a = Infer(Routed(), Batch()), b = Infer(permuted, Batch());
  EXPECT_EQ(b.logits, a.logits);
  for (size_t i = 0; i < a.picks.size(); ++i) {
    if (a.picks[i] < 0) continue;
    EXPECT_EQ(order[static_cast<size_t>(b.picks[i])], static_cast<size_t>(a.picks[i]));
  }
  EXPECT_EQ(Infer(permuted.Pruned(), Batch()).logits, Infer(Routed().Pruned(), Batch()).logits);
}
TEST(Encoder, EveryForcedHeadIsTheModelThatKeepsIt) {
  std::vector<size_t> as_they_are(12);
  for (size_t h = 0; h < 12; ++h) as_they_are[h] = h;
  std::vector<std::vector<float>> seen;
  for (int head = 0; head < 12; ++head) {
    std::vector<int32_t> forced(12, -1);
    std::fill(forced.begin() + 6, forced.end(), head);
    const std::vector<float> routed = Infer(Routed(), Batch(), forced).logits;
    EXPECT_EQ(Infer(Converted(Reordered(as_they_are, head)).Pruned(), Batch()).logits, routed);
    for (const std::vector<float>& other : seen) EXPECT_NE(other, routed);
    seen.push_back(routed);
  }
}
TEST(Encoder, WithOneHeadNothingIsLeftToRoute) {
  const Encoder cut = Routed().Pruned();
  std::vector<int32_t> only(12, -1);
  std::fill(only.begin() + 6, only.end(), 0);
  EXPECT_EQ(Infer(cut, Batch(), only).logits, Infer(cut, Batch()).logits);
}
TEST(Encoder, ASlicedHeadEqualsTheSameHeadAmongAll) {
  std::vector<float> x(37 * 192);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(2 * RandomUniform({9, 0, 0, 0, i}) - 1);
  const std::vector<float> all = Dense().HeadOutputs(2, 0, 12, x);
  for (int64_t head : {0, 5, 11}) {
    const std::vector<float> one = Dense().HeadOutputs(2, head, 1, x);
    for (int64_t t = 0; t < 37; ++t)
      for (int64_t c = 0; c < 16; ++c)
        ASSERT_EQ(one[t * 16 + c], all[t * 192 + head * 16 + c]) << head;
  }
}
TEST(Encoder, AConvertedHeadAgreesWithTheReference) {
  const Encoder& e = Routed();
  const EncoderLayer& l = e.layers()[7];
  std::vector<float> x(9 * 192);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(2 * RandomUniform({4, 0, 0, 0, i}) - 1);
  for (int64_t head : {0, 6}) {
    reference::Rows part[3];
    for (int n = 0; n < 3; ++n) {
      for (int64_t t = 0; t < 9; ++t) {
        std::vector<double> row;
        for (int64_t c = 0; c < 16; ++c) {
          const int64_t at = head * 48 + n * 16 + c;
          double sum = static_cast<double>(l.qkv_bias[at]);
          for (int64_t j = 0; j < 192; ++j)
            sum += static_cast<double>(l.qkv[at * 192 + j]) * static_cast<double>(x[t * 192 + j]);
          row.push_back(sum);
        }
        part[n].push_back(row);
      }
    }
    const sluice::reference::Rows want = sluice::reference::Head(part[0], part[1], part[2]);
    const std::vector<float> got = e.HeadOutputs(7, head, 1, x);
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i / 16][i % 16], 1e-5);
  }
}
TEST(Encoder, APrunedFileHoldsOneHeadAndIsSmaller) {
  const std::string path = testing::TempDir() + "/sluice_pruned_encoder.gguf";
  ASSERT_TRUE(Encoder::WritePruned(DenseFile(), RoutedFile(), path).ok());
  auto f = Gguf::Open(path);
  ASSERT_TRUE(f.ok()) << f.status();
  for (const auto& [name, tensor] : f->tensors()) {
    EXPECT_THAT(name, testing::Not(testing::HasSubstr("router")));
    EXPECT_THAT(name, testing::Not(testing::HasSubstr("usage")));
    if (name.find("shrp.q.weight") != std::string::npos) {
      EXPECT_EQ(tensor.elements, 16u * 192u) << name;
    }
  }
  EXPECT_EQ(f->tensors().count("blk.6.attn_q.weight"), 0u);
  EXPECT_LT(
      std::filesystem::file_size(path),
      0.75 * static_cast<double>(std::filesystem::file_size(kModels + "intent-encoder-q8_0.gguf")));
  auto cut = Encoder::Load(*f);
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(Infer(*cut, Batch()).logits, Infer(Routed().Pruned(), Batch()).logits);
  std::remove(path.c_str());
}
TEST(Encoder, MeasuredWorkAndParametersFall) {
  const Gguf half = Open("shrp-half-usage_head-s1.gguf"),
             most = Open("shrp-most-usage_head-s1.gguf");
  const Encoder h = *Encoder::Load(DenseFile(), &half), m = *Encoder::Load(DenseFile(), &most);
  const double parameters = static_cast<double>(Dense().layer_parameters());
  EXPECT_NEAR(1 - static_cast<double>(h.layer_parameters()) / parameters, 0.48, 0.01);
  const std::vector<std::vector<int32_t>> ids = {Tokens(128, 8)};
  EXPECT_NEAR(
      static_cast<double>(Infer(m, ids).macs) / static_cast<double>(Infer(Dense(), ids).macs),
      0.115, 0.007);
}
TEST(Encoder, ErrorsSayWhatIsWrong) {
  InlineExecutor one;
  const auto says = [&](const absl::Status& s, const char* what) {
    EXPECT_THAT(std::string(s.message()), testing::HasSubstr(what));
  };
  says(Dense().Run({{}}, one).status(), "sequence 0 is empty");
  says(Dense().Run({{1}, {8192}}, one).status(), "token 8192 of sequence 1");
  says(Dense().Run({{1}}, one, {0}).status(), "wanted one a layer");
  says(Routed().Pruned().Run({{1}}, one, std::vector<int32_t>(12, 1)).status(),
       "head 1 of layer 6");
  says(Encoder::Load(RoutedFile()).status(), "bert.block_count");
  says(Encoder::Load(DenseFile(), &DenseFile()).status(), "no sluice.shrp.layers");
  EXPECT_TRUE(Dense().Run({}, one).ok());
  EXPECT_TRUE(Dense().Run({Tokens(500, 1)}, one).ok());  // cut to the context
}
TEST(Encoder, RefusesWhatItDoesNotCompute) {
  const auto refused = [&](const std::string& key, const GgufValue& value,
                           const std::string& tensor) {
    GgufWriter w;
    for (const auto& [k, v] : DenseFile().values()) {
      if (k != key) w.Set(k, v);
    }
    if (!key.empty()) w.Set(key, value);
    for (const auto& [name, t] : DenseFile().tensors()) w.Copy(t);
    const std::vector<float> zeros(4);
    if (!tensor.empty()) {
      EXPECT_TRUE(w.Add(tensor, {{4}}, zeros).ok());
    }
    const std::string bytes = w.Bytes();
    const auto file = Gguf::Parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
    EXPECT_TRUE(file.ok()) << file.status();
    return std::string(Encoder::Load(*file).status().message());
  };
  EXPECT_EQ(refused("", {}, ""), "");
  EXPECT_THAT(refused("", {}, "token_types.weight"), testing::HasSubstr("'token_types.weight'"));
  EXPECT_THAT(refused("", {}, "blk.0.attn_q_norm.weight"), testing::HasSubstr("attn_q_norm"));
  EXPECT_THAT(refused("bert.pooling_type", int64_t{1}, ""),
              testing::HasSubstr("'bert.pooling_type' (1)"));
  EXPECT_THAT(refused("bert.attention.layer_norm_epsilon", std::nan(""), ""),
              testing::HasSubstr("layer_norm_epsilon' is nan"));
  EXPECT_THAT(refused("tokenizer.ggml.model", std::string("bert"), ""),
              testing::HasSubstr("implemented: 'gpt2'"));
}
}  // namespace encoder_test
}  // namespace host
SLUICE_END_NAMESPACE
