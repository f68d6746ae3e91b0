#ifndef SLUICE_TESTS_SUPPORT_TINY_MODEL_H_
#define SLUICE_TESTS_SUPPORT_TINY_MODEL_H_
// A Llama file of one small layer whose vocabulary is the bytes, to be changed before it is
// written.
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
// GPT-2's printable stand-in for a byte, in UTF-8.
inline std::string PrintableByte(int byte) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += !printable(b);
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

struct TinyModel {
  static constexpr int64_t kWidth = 32, kHeads = 4, kKvHeads = 2, kHeadDim = 8, kFfn = 64;
  std::map<std::string, GgufValue> keys;
  std::map<std::string, std::vector<uint64_t>> tensors;  // shapes, the fastest dimension first

  TinyModel() {
    keys["general.architecture"] = std::string("llama");
    keys["general.name"] = std::string("tiny");
    keys["llama.context_length"] = int64_t{128};
    keys["llama.embedding_length"] = kWidth;
    keys["llama.block_count"] = int64_t{1};
    keys["llama.feed_forward_length"] = kFfn;
    keys["llama.attention.head_count"] = kHeads;
    keys["llama.attention.head_count_kv"] = kKvHeads;
    keys["llama.attention.layer_norm_rms_epsilon"] = 1e-5;
    keys["llama.rope.freq_base"] = 10000.0;
    keys["tokenizer.ggml.model"] = std::string("gpt2");
    std::vector<std::string> tokens;
    for (int b = 0; b < 256; ++b) tokens.push_back(PrintableByte(b));
    tokens.push_back("ab");
    keys["tokenizer.ggml.tokens"] = tokens;
    keys["tokenizer.ggml.merges"] = std::vector<std::string>{"a b"};
    keys["tokenizer.ggml.eos_token_id"] = int64_t{0};
    tensors["token_embd.weight"] = {32, 257};
    tensors["output_norm.weight"] = {32};
    tensors["blk.0.attn_norm.weight"] = {32};
    tensors["blk.0.attn_q.weight"] = {32, 32};
    tensors["blk.0.attn_k.weight"] = {32, 16};
    tensors["blk.0.attn_v.weight"] = {32, 16};
    tensors["blk.0.attn_output.weight"] = {32, 32};
    tensors["blk.0.ffn_norm.weight"] = {32};
    tensors["blk.0.ffn_gate.weight"] = {32, 64};
    tensors["blk.0.ffn_up.weight"] = {32, 64};
    tensors["blk.0.ffn_down.weight"] = {64, 32};
  }
  // A Mixture of Experts in the FFN's place.
  static TinyModel WithExperts(uint64_t experts, int64_t used) {
    TinyModel m;
    m.keys["llama.expert_count"] = static_cast<int64_t>(experts);
    m.keys["llama.expert_used_count"] = used;
    for (const char* name : {"gate", "up", "down"}) {
      const std::string dense = std::string("blk.0.ffn_") + name + ".weight";
      std::vector<uint64_t> shape = m.tensors[dense];
      shape.push_back(experts);
      m.tensors[std::string("blk.0.ffn_") + name + "_exps.weight"] = shape;
      m.tensors.erase(dense);
    }
    m.tensors["blk.0.ffn_gate_inp.weight"] = {32, experts};
    return m;
  }
  // SmallThinker: experts chosen before attention by a sigmoid, of a ReLU; `layers` layers, of
  // which three of four slide over `window` keys, or none where it is 0.
  static TinyModel SmallThinker(int64_t layers, int64_t window, uint64_t experts = 5,
                                int64_t used = 2) {
    TinyModel m = WithExperts(experts, used);
    std::map<std::string, GgufValue> keys;
    for (const auto& [key, value] : m.keys) {
      const bool own = key.rfind("llama.", 0) == 0;
      keys[own ? "smallthinker." + key.substr(6) : key] = value;
    }
    m.keys = keys;
    m.keys["general.architecture"] = std::string("smallthinker");
    m.keys["smallthinker.block_count"] = layers;
    m.keys["smallthinker.expert_gating_func"] = int64_t{2};
    if (window > 0) m.keys["smallthinker.attention.sliding_window"] = window;
    const std::map<std::string, std::vector<uint64_t>> first = m.tensors;
    for (const auto& [name, shape] : first) {
      if (name.rfind("blk.0.", 0) != 0) continue;
      for (int64_t i = 1; i < layers; ++i)
        m.tensors["blk." + std::to_string(i) + name.substr(5)] = shape;
    }
    return m;
  }
  absl::Status Write(const std::string& path) const {
    GgufWriter w;
    for (const auto& [key, value] : keys) w.Set(key, value);
    uint64_t which = 0;
    for (const auto& [name, shape] : tensors) {
      uint64_t n = 1;
      for (uint64_t d : shape) n *= d;
      std::vector<float> data(n);
      for (uint64_t i = 0; i < n; ++i)
        data[i] = static_cast<float>(RandomUniform({7, which, 0, 0, i})) - 0.5f;
      ++which;
      const absl::Status added = w.Add(name, shape, data);
      if (!added.ok()) return added;
    }
    return w.Write(path);
  }
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_TINY_MODEL_H_
