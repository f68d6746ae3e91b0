// The trained gates of SeerAttention: what their trainer computed, and that a policy finds them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>

#include "sluice/routers/attention/seer_attention/seer_attention_reference.h"
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
  EXPECT_LT(bundled, 0.6);
  EXPECT_EQ(bundled, density(absl::StrCat(
                         "seer_attention:block=32,density=0.12,dense_tail=2,weights=", Gates(1))));
  EXPECT_GT(density("seer_attention:density=0.5"), bundled);

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
