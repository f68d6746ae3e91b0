// What the loader takes, and what it refuses by name.
#include "sluice/runtime/host/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <functional>

#include "sluice/tests/support/tiny_model.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace model_test {
using testing::AllOf;
using testing::HasSubstr;

class ModelTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(folder_), nullptr); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Path() const { return std::string(folder_) + "/model.gguf"; }
  absl::StatusOr<Model> Load(const TinyModel& m) const {
    const absl::Status written = m.Write(Path());
    if (!written.ok()) return written;
    return LoadModel(Path());
  }
  // With `key` set to `value`, the file is refused by that name, and says the value.
  void RefusesKey(const std::string& key, GgufValue value, const std::string& said) const {
    TinyModel m;
    m.keys[key] = std::move(value);
    const auto model = Load(m);
    ASSERT_FALSE(model.ok()) << key;
    EXPECT_THAT(model.status().message(),
                AllOf(HasSubstr(Path()), HasSubstr("'" + key + "'"), HasSubstr(said)));
  }
  void AcceptsKey(const std::string& key, GgufValue value) const {
    TinyModel m;
    m.keys[key] = std::move(value);
    const auto model = Load(m);
    EXPECT_TRUE(model.ok()) << key << ": " << model.status();
  }
  char folder_[32] = "/tmp/sluice-model-XXXXXX";
};

TEST_F(ModelTest, LoadsWhatIsImplemented) {
  const auto m = Load({});
  ASSERT_TRUE(m.ok()) << m.status();
  EXPECT_EQ(m->shape.head_dim, 8);
  EXPECT_EQ(m->layers[0].qkv.size(), 32u * (32 + 16 + 16));
  AcceptsKey("general.file_type", int64_t{7});
  AcceptsKey("general.quantization_version", int64_t{2});
  AcceptsKey("llama.vocab_size", int64_t{257});
  AcceptsKey("llama.rope.dimension_count", int64_t{8});
  AcceptsKey("llama.rope.scaling.type", std::string("none"));
  AcceptsKey("llama.attention.key_length", int64_t{8});
  AcceptsKey("llama.attention.value_length", int64_t{8});
  AcceptsKey("llama.expert_count", int64_t{0});
  AcceptsKey("tokenizer.ggml.pre", std::string("gpt-2"));
  AcceptsKey("tokenizer.ggml.add_bos_token", false);
  AcceptsKey("tokenizer.chat_template", std::string("{{ messages }}"));
  AcceptsKey("split.count", int64_t{1});
}

TEST_F(ModelTest, RefusesKeysThatChangeTheModel) {
  RefusesKey("llama.rope.scaling.type", std::string("linear"), "'linear'; implemented: 'none'");
  RefusesKey("llama.rope.scaling.factor", 4.0, "(4) is not implemented");
  RefusesKey("llama.rope.scaling.original_context_length", int64_t{64}, "64");
  RefusesKey("llama.rope.dimension_count", int64_t{4}, "is 4; implemented: 8");
  RefusesKey("llama.attention.value_length", int64_t{16}, "is 16; implemented: 8");
  RefusesKey("llama.attention.scale", 0.5, "0.5");
  RefusesKey("llama.attention.clamp_kqv", 8.0, "is 8; implemented: 0");
  RefusesKey("llama.attention.sliding_window", int64_t{4096}, "is 4096");
  RefusesKey("llama.attention.causal", false, "is false");
  RefusesKey("llama.logit_scale", 0.25, "is 0.25; implemented: 1");
  RefusesKey("llama.vocab_size", int64_t{300}, "is 300; implemented: 257");
  RefusesKey("llama.something.new", int64_t{1}, "not implemented");
  RefusesKey("mamba.block_count", int64_t{1}, "not implemented");
  RefusesKey("adapter.type", std::string("lora"), "'lora'");
  RefusesKey("general.type", std::string("adapter"), "implemented: 'model'");
  RefusesKey("split.count", int64_t{3}, "is 3; implemented: 0, 1");
}
TEST_F(ModelTest, RefusesTokenizersThatSplitOtherwise) {
  RefusesKey("tokenizer.ggml.model", std::string("llama"), "'llama'; implemented: 'gpt2'");
  RefusesKey("tokenizer.ggml.pre", std::string("llama-bpe"), "implemented: 'gpt-2'");
  RefusesKey("tokenizer.ggml.add_bos_token", true, "is true; implemented: false");
  RefusesKey("tokenizer.ggml.add_eos_token", true, "is true; implemented: false");
  RefusesKey("tokenizer.ggml.eot_token_id", int64_t{3}, "not implemented");
  TinyModel m;
  std::vector<int64_t> types(257, 1);
  types[5] = 4;
  m.keys["tokenizer.ggml.token_type"] = types;
  EXPECT_THAT(Load(m).status().message(), HasSubstr("token 5"));
  m.keys["tokenizer.ggml.token_type"] = std::vector<int64_t>(3, 1);
  EXPECT_THAT(Load(m).status().message(), HasSubstr("not a list of 257 integers"));
  for (const char* key : {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"}) {
    for (int64_t id : {-1, 257}) {
      TinyModel out;
      out.keys[key] = id;
      EXPECT_THAT(Load(out).status().message(), AllOf(HasSubstr(key), HasSubstr("0 to 256")));
    }
  }
}
TEST_F(ModelTest, RefusesTensorsThatItDoesNotCompute) {
  for (const char* name :
       {"rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias",
        "blk.0.attn_output.bias", "blk.0.ffn_gate_inp.weight", "blk.0.ffn_up.bias",
        "blk.0.attn_q_norm.weight", "blk.1.attn_norm.weight", "output.bias", "whatever"}) {
    TinyModel m;
    m.tensors[name] = {4};
    EXPECT_THAT(Load(m).status().message(),
                AllOf(HasSubstr(std::string("'") + name + "'"), HasSubstr("not implemented")));
  }
}
TEST_F(ModelTest, RefusesShapesThatCannotBe) {
  const auto says = [&](const std::string& key, GgufValue value, const std::string& said) {
    TinyModel m;
    m.keys[key] = std::move(value);
    EXPECT_THAT(Load(m).status().message(), HasSubstr(said)) << key;
  };
  const std::string eps = "llama.attention.layer_norm_rms_epsilon";
  const std::string base = "llama.rope.freq_base";
  for (double bad : {std::nan(""), -1e-5, 0.0, HUGE_VAL}) says(eps, bad, "'" + eps + "' is");
  for (double bad : {std::nan(""), -1e4, 0.0, HUGE_VAL}) says(base, bad, "'" + base + "' is");
  says("llama.attention.head_count_kv", int64_t{3}, "4 heads are no multiple of 3 KV heads");
  says("llama.attention.head_count", int64_t{6}, "the width 32 is no multiple of 6 heads");
  says("llama.attention.key_length", int64_t{7}, "heads are 7 wide");
  says("llama.attention.key_length", int64_t{16}, "blk.0.attn_q.weight");
  says("llama.embedding_length", int64_t{64}, "token_embd.weight");
  says("llama.feed_forward_length", int64_t{96}, "blk.0.ffn_gate.weight");
  says("llama.block_count", int64_t{0}, "allowed: 1 to");
  says("llama.block_count", int64_t{2}, "blk.1.attn_norm.weight");
  says("llama.block_count", int64_t{1} << 24, "the file has 11 tensors");
  says("llama.context_length", int64_t{-1}, "allowed: 1 to");
}
TEST_F(ModelTest, RefusesWhatIsNoFileAtOnce) {
  const std::string pipe = std::string(folder_) + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path : {pipe, std::string("/dev/zero"), std::string(folder_)})
    EXPECT_THAT(LoadModel(path).status().message(), HasSubstr("not a regular file"));
}
}  // namespace model_test
}  // namespace host
SLUICE_END_NAMESPACE
