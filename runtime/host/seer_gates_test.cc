// The trained gates of SeerAttention: what their trainer computed, and that a policy finds them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>

#include "sluice/routers/attention/seer_attention/seer_attention_reference.h"
#include "sluice/routers/attention/seer_attention_r/seer_attention_r_reference.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/tests/support/tiny_model.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace seer_gates_test {
using testing::HasSubstr;

std::string Gates(int seed) {
  return absl::StrCat(ModelsFolder(), "/seer_attention-s", seed, ".gguf");
}
const Model& Mini() {
  static const Model* m = new Model(*LoadModel(ModelsFolder() + "/sluice-mini-q8_0.gguf"));
  return *m;
}

// A file holds queries and keys of the last layer and what the trainer's gate said of them.
TEST(SeerGates, AreWhatTheTrainerComputed) {
  for (int seed : {1, 2, 3}) {
    const auto f = Gguf::Open(Gates(seed));
    ASSERT_TRUE(f.ok()) << f.status();
    const auto size = [&](const char* name) {
      return *f->Int(absl::StrCat("sluice.seer_attention.", name));
    };
    const int64_t heads = size("heads");
    const int64_t kv_heads = size("kv_heads");
    const int64_t d = size("dim");
    const int64_t block = size("block");
    ASSERT_EQ(size("tile"), block);
    const int64_t tiles = 4;
    const auto read = [&](const std::string& name, int64_t inner, int64_t outer) {
      return *f->ReadF32(name, {static_cast<uint64_t>(inner), static_cast<uint64_t>(outer)});
    };
    const std::vector<float> q = read("golden.q", heads * d, tiles * block);
    const std::vector<float> k = read("golden.k", kv_heads * d, tiles * block);
    const std::vector<float> gate = read("golden.gate", tiles, heads * tiles);

    AttentionInputs in;
    in.q = {q.data(), tiles * block, heads, d, heads * d, d};
    in.k = {k.data(), DType::kF32, tiles * block, kv_heads, d, kv_heads * d, d};
    in.q_pre = in.q;
    in.k_pre = in.k;
    in.rope_base = Mini().shape.rope_base;
    attention::SeerAttentionReference reference = {.block = block};
    const auto map = [&](const char* of, int64_t streams) {
      return read(absl::StrCat("seer_attention.", size("layers") - 1, ".", of), 3 * d, streams * d);
    };
    ASSERT_EQ(size("query_maps"), 1);
    reference.map = map("key", kv_heads);
    reference.query_map = map("query", heads);
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t t = 0; t < tiles; ++t) {
        const auto got = reference.Gate(in, t * block, (t + 1) * block, h);
        ASSERT_EQ(std::ssize(got), t + 1);
        for (int64_t b = 0; b <= t; ++b)
          EXPECT_NEAR(got[static_cast<size_t>(b)], gate[(h * tiles + t) * tiles + b], 2e-3)
              << seed << " " << h << " " << t << " " << b;
      }
    }
  }
}

TEST(SeerGates, OfDecodeAreWhatTheTrainerComputed) {
  for (const char* model : {"", "reference-lm-"}) {
    const auto f = Gguf::Open(absl::StrCat(ModelsFolder(), "/", model, "seer_attention_r-s1.gguf"));
    ASSERT_TRUE(f.ok()) << f.status();
    const auto size = [&](const char* name) {
      return *f->Int(absl::StrCat("sluice.seer_attention_r.", name));
    };
    const int64_t heads = size("heads");
    const int64_t kv_heads = size("kv_heads");
    const int64_t d = size("dim");
    const int64_t block = size("block");
    constexpr int64_t kBlocks = 4;
    const int64_t n = kBlocks * block;
    const auto read = [&](const std::string& name, std::vector<uint64_t> shape) {
      return *f->ReadF32(name, shape);
    };
    const auto matrix = [&](const std::string& name, int64_t inner, int64_t outer) {
      return read(name, {static_cast<uint64_t>(inner), static_cast<uint64_t>(outer)});
    };
    const std::vector<float> q = matrix("golden.q", heads * d, n);
    const std::vector<float> k = matrix("golden.k", kv_heads * d, n);
    const std::vector<float> gate = matrix("golden.gate", kBlocks, kv_heads * n);

    AttentionInputs in;
    in.q = {q.data(), n, heads, d, heads * d, d};
    in.k = {k.data(), DType::kF32, n, kv_heads, d, kv_heads * d, d};
    in.q_pre = in.q;
    in.k_pre = in.k;
    in.rope_base = Mini().shape.rope_base;
    attention::SeerAttentionRReference reference = {.block = block};
    const std::string of = absl::StrCat("seer_attention_r.", size("layers") - 1, ".");
    const int64_t group = heads / kv_heads;
    reference.key = matrix(of + "key", 3 * d, kv_heads * d);
    reference.query = matrix(of + "query", group * d, kv_heads * d);
    reference.key_norm = read(of + "key_norm", {static_cast<uint64_t>(d)});
    reference.query_norm = read(of + "query_norm", {static_cast<uint64_t>(d)});
    // The own block is kept whatever its gate: what is compared are the shares of whole ones.
    for (int64_t kv = 0; kv < kv_heads; ++kv) {
      const auto keys = reference.BlockKeys(in, kv);
      for (int64_t t = block; t < n; t += 7) {
        const auto got = reference.Gate(in, t, kv, keys);
        const float* trained = &gate[(kv * n + t) * kBlocks];
        const int64_t whole = (t + 1) / block;
        double of_got = 0;
        double of_trained = 0;
        for (int64_t b = 0; b < whole; ++b) {
          of_got += got[static_cast<size_t>(b)];
          of_trained += static_cast<double>(trained[b]);
        }
        for (int64_t b = 0; b < whole; ++b)
          EXPECT_NEAR(got[static_cast<size_t>(b)] / of_got,
                      static_cast<double>(trained[b]) / of_trained, 2e-3)
              << model << kv << " " << t << " " << b;
      }
    }
  }
}

TEST(SeerGates, APolicyFindsThoseOfTheModel) {
  const std::vector<int32_t> tokens(2048, 7);
  EngineOptions o;
  o.max_tokens = 2048;
  const auto density = [&](const std::string& policy) {
    auto e = CreateWithPolicy(Mini(), o, policy);
    EXPECT_TRUE(e.ok()) << policy << ": " << e.status();
    EXPECT_TRUE(Perplexity(**e, tokens).ok());
    return (*e)->counters().density();
  };
  const double bundled = density("seer_attention");
  EXPECT_LT(bundled, 0.95);
  EXPECT_EQ(bundled, density(absl::StrCat("seer_attention:block=32,weights=", Gates(1))));
  EXPECT_LT(density("seer_attention:tau=0.01"), bundled);
  const auto named = WithBundledWeights("seer_attention:tau=0.01", Mini());
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_EQ(*named, absl::StrCat("seer_attention:tau=0.01,block=32,weights=", Gates(1)));
  EXPECT_EQ(*WithBundledWeights("quest:k=3", Mini()), "quest:k=3");

  // Gates of another model are nobody's, though the sizes fit.
  Model renamed = Mini();
  EXPECT_THAT(LearnedPolicies(renamed), testing::Contains("seer_attention"));
  renamed.name = "another";
  EXPECT_THAT(LearnedPolicies(renamed), testing::Not(testing::Contains("seer_attention")));
  renamed = Mini();
  renamed.shape.heads = 4;
  EXPECT_THAT(LearnedPolicies(renamed), testing::Not(testing::Contains("seer_attention")));

  char folder[] = "/tmp/sluice-gates-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string path = std::string(folder) + "/model.gguf";
  ASSERT_TRUE(TinyModel().Write(path).ok());
  const auto tiny = LoadModel(path);
  std::filesystem::remove_all(folder);
  ASSERT_TRUE(tiny.ok()) << tiny.status();
  EXPECT_THAT(std::string(CreateWithPolicy(*tiny, {}, "seer_attention").status().message()),
              HasSubstr("weights=FILE"));
  EXPECT_THAT(std::string(CreateWithPolicy(
                              *tiny, {}, absl::StrCat("seer_attention:block=32,weights=", Gates(1)))
                              .status()
                              .message()),
              HasSubstr("the model has 1"));
}
}  // namespace seer_gates_test
}  // namespace host
SLUICE_END_NAMESPACE
