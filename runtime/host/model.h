#ifndef SLUICE_RUNTIME_HOST_MODEL_H_
#define SLUICE_RUNTIME_HOST_MODEL_H_
// A language model's weights and shape, as the host computes with them.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/runtime/text/tokenizer.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
struct ModelShape {
  int64_t layers = 0, width = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0, vocab = 0,
          context = 0;
  int64_t experts = 0, experts_used = 0;  // 0: a dense FFN; else `ffn` is the width of an expert
  float rope_base = 10000, eps = 1e-5f;
};
// Row-major [out, in] matrices as fp32; of a Mixture of Experts gate_up and down of one expert
// behind those of another.
struct Layer {
  std::vector<float> attn_norm, qkv, attn_out, ffn_norm, gate_up, down;
  std::vector<float> expert_gate;  // [experts, width]
};
struct Model {
  ModelShape shape;
  std::vector<float> embed, output, norm;  // output empty: tied to embed
  std::vector<Layer> layers;
  Tokenizer tokenizer;
  const std::vector<float>& head() const { return output.empty() ? embed : output; }
};
// A Llama-architecture GGUF file with F32, F16 or Q8_0 tensors and interleaved rotary pairs; with
// experts, as llama.cpp lays Mixtral out: softmax of the gate, the best, renormalised. A key
// or tensor that changes the model and is not implemented is refused by name: Unimplemented.
absl::StatusOr<Model> LoadModel(const std::string& path);
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_MODEL_H_
