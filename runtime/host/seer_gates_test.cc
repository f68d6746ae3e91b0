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

std::string Gates() { return ModelsFolder() + "/seer_attention-s1.gguf"; }
const Model& Mini() {
  static const Model* m = new Model(*LoadModel(ModelsFolder() + "/sluice-mini-q8_0.gguf"));
  return *m;
}

// A file holds queries and keys of the last layer and what the trainer's gate said of them.
class Golden {
  Gguf file_;
  std::string method_;

 public:
  Golden(const std::string& file, const std::string& method)
      : file_(*Gguf::Open(absl::StrCat(ModelsFolder(), "/", file))), method_(method) {}

  int64_t Size(const std::string& name) const {
    return *file_.Int(absl::StrCat("sluice.", method_, ".", name));
  }
  // A tensor [outer, inner].
  std::vector<float> Matrix(const std::string& name, int64_t inner, int64_t outer) const {
    return *file_.ReadF32(name, {static_cast<uint64_t>(inner), static_cast<uint64_t>(outer)});
  }
  // Weights of the last layer.
  std::vector<float> Map(const std::string& of, int64_t inner, int64_t outer) const {
    return Matrix(Name(of), inner, outer);
  }
  std::vector<float> Vector(const std::string& of, int64_t n) const {
    return *file_.ReadF32(Name(of), {static_cast<uint64_t>(n)});
  }

  const int64_t heads = Size("heads");
  const int64_t kv_heads = Size("kv_heads");
  const int64_t d = Size("dim");
  const int64_t block = Size("block");
  static constexpr int64_t kBlocks = 4;
  const int64_t n = kBlocks * block;
  const std::vector<float> q = Matrix("golden.q", d* heads, n);
  const std::vector<float> k = Matrix("golden.k", d* kv_heads, n);

  AttentionInputs Inputs() const {
    AttentionInputs in;
    in.q = {q.data(), n, heads, d, heads * d, d};
    in.k = {k.data(), DType::kF32, n, kv_heads, d, kv_heads * d, d};
    in.q_pre = in.q;
    in.k_pre = in.k;
    in.rope_base = Mini().shape.rope_base;
    return in;
  }

 private:
  std::string Name(const std::string& of) const {
    return absl::StrCat(method_, ".", Size("layers") - 1, ".", of);
  }
};

// The own block is kept whatever its gate, and a row that ends within it sees a part: what is
// compared are the shares of whole blocks.
void ExpectShares(const attention::reference::Vector& got, const float* trained, int64_t whole,
                  const std::string& where) {
  double of_got = 0;
  double of_trained = 0;
  for (int64_t b = 0; b < whole; ++b) {
    of_got += got[b];
    of_trained += static_cast<double>(trained[b]);
  }
  for (int64_t b = 0; b < whole; ++b)
    EXPECT_NEAR(got[b] / of_got, static_cast<double>(trained[b]) / of_trained, 2e-3)
        << where << " " << b;
}

TEST(SeerGates, AreWhatTheTrainerComputed) {
  for (const char* file :
       {"seer_attention-s1.gguf", "seer_attention-s2.gguf", "seer_attention-s3.gguf",
        "reference-lm-seer_attention-s1.gguf", "reference-lm-seer_attention-s2.gguf",
        "reference-lm-seer_attention-s3.gguf", "reference-lm-seer_attention-b16-s1.gguf"}) {
    const Golden golden(file, "seer_attention");
    const int64_t tile = golden.Size("tile");
    const int64_t tiles = golden.n / tile;
    ASSERT_EQ(golden.Size("query_maps"), 1);
    const std::vector<float> gate =
        golden.Matrix("golden.gate", Golden::kBlocks, golden.heads * tiles);
    attention::SeerAttentionReference reference = {.block = golden.block};
    reference.map = golden.Map("key", 3 * golden.d, golden.kv_heads * golden.d);
    reference.query_map = golden.Map("query", 3 * golden.d, golden.heads * golden.d);
    const AttentionInputs in = golden.Inputs();
    for (int64_t h = 0; h < golden.heads; ++h) {
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t end = (t + 1) * tile;
        const auto got = reference.Gate(in, t * tile, end, h);
        ASSERT_EQ(std::ssize(got), (end - 1) / golden.block + 1);
        ExpectShares(got, &gate[(h * tiles + t) * Golden::kBlocks], end / golden.block,
                     absl::StrCat(file, " ", h, " ", t));
      }
    }
  }
}

TEST(SeerGates, OfDecodeAreWhatTheTrainerComputed) {
  for (const char* file : {"seer_attention_r-s1.gguf", "reference-lm-seer_attention_r-s1.gguf"}) {
    const Golden golden(file, "seer_attention_r");
    const int64_t d = golden.d;
    const int64_t group = golden.heads / golden.kv_heads;
    const std::vector<float> gate =
        golden.Matrix("golden.gate", Golden::kBlocks, golden.kv_heads * golden.n);
    attention::SeerAttentionRReference reference = {.block = golden.block};
    reference.key = golden.Map("key", 3 * d, golden.kv_heads * d);
    reference.query = golden.Map("query", group * d, golden.kv_heads * d);
    reference.key_norm = golden.Vector("key_norm", d);
    reference.query_norm = golden.Vector("query_norm", d);
    const AttentionInputs in = golden.Inputs();
    for (int64_t kv = 0; kv < golden.kv_heads; ++kv) {
      const auto keys = reference.BlockKeys(in, kv);
      for (int64_t t = golden.block; t < golden.n; t += 7)
        ExpectShares(reference.Gate(in, t, kv, keys), &gate[(kv * golden.n + t) * Golden::kBlocks],
                     (t + 1) / golden.block, absl::StrCat(file, " ", kv, " ", t));
    }
  }
}

// A policy that names the size of its blocks gets the gates that were trained for it.
TEST(SeerGates, OfSeveralThoseThatAgreeWithThePolicy) {
  const Golden golden("reference-lm-seer_attention-s1.gguf", "seer_attention");
  Model reference;
  reference.name = "sluice-reference-public";
  reference.shape.layers = golden.Size("layers");
  reference.shape.heads = golden.heads;
  reference.shape.kv_heads = golden.kv_heads;
  const auto named = [&](const std::string& policy) {
    return *WithBundledWeights(policy, reference);
  };
  const std::string of_32 = ModelsFolder() + "/reference-lm-seer_attention-s1.gguf";
  const std::string of_16 = ModelsFolder() + "/reference-lm-seer_attention-b16-s1.gguf";
  EXPECT_EQ(named("seer_attention"), "seer_attention:block=32,weights=" + of_32);
  EXPECT_EQ(named("seer_attention:block=32"), "seer_attention:block=32,weights=" + of_32);
  EXPECT_EQ(named("seer_attention:block=16,tau=0.1"),
            "seer_attention:block=16,tau=0.1,weights=" + of_16);
  // None agrees: the first, which says what it was trained for.
  EXPECT_EQ(named("seer_attention:block=64"), "seer_attention:block=64,weights=" + of_32);
  EXPECT_THAT(LearnedPolicies(reference), testing::ElementsAre("seer_attention"));
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
  EXPECT_EQ(bundled, density(absl::StrCat("seer_attention:block=32,weights=", Gates())));
  EXPECT_LT(density("seer_attention:tau=0.01"), bundled);
  const auto named = WithBundledWeights("seer_attention:tau=0.01", Mini());
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_EQ(*named, absl::StrCat("seer_attention:tau=0.01,block=32,weights=", Gates()));
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
                              *tiny, {}, absl::StrCat("seer_attention:block=32,weights=", Gates()))
                              .status()
                              .message()),
              HasSubstr("the model has 1"));
}
}  // namespace seer_gates_test
}  // namespace host
SLUICE_END_NAMESPACE
