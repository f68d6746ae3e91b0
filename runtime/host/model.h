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
// What the gate of a Mixture of Experts reads.
enum class GateInput : uint8_t {
  kFfn,       // what its experts are given: the normalised state after attention
  kEntering,  // the state that enters the layer, before attention and any norm: SmallThinker
  kAttention  // what attention is given: that state, normalised
};
enum class Activation : uint8_t { kSilu, kRelu };

struct ModelShape {
  int64_t layers = 0, width = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0, vocab = 0,
          context = 0;
  int64_t experts = 0, experts_used = 0;  // 0: a dense FFN; else `ffn` is the width of an expert
  GateInput gate_input = GateInput::kFfn;
  bool sigmoid_gate = false;  // else a softmax
  Activation activation = Activation::kSilu;
  float rope_base = 10000, eps = 1e-5f;
  int64_t window =
      0;  // keys that a query of a sliding layer sees, itself among them; 0: none slides

  // With a window, three layers of four slide. The others, the first among them, see all keys and
  // do not rotate.
  static constexpr int64_t kFullEvery = 4;
  bool slides(int64_t layer) const { return window > 0 && layer % kFullEvery != 0; }
  bool rotates(int64_t layer) const { return window == 0 || slides(layer); }
  bool early_gate() const { return experts > 0 && gate_input != GateInput::kFfn; }
};
// Row-major [out, in] matrices as fp32; of a Mixture of Experts gate_up and down of one expert
// behind those of another.
struct Layer {
  std::vector<float> attn_norm, qkv, attn_out, ffn_norm, gate_up, down;
  std::vector<float> expert_gate;  // [experts, width]

  // Of one FFN: gate and up, [2 ffn, width], and down, [width, ffn]. A dense layer has FFN 0 alone.
  const float* GateUp(const ModelShape& s, int64_t expert) const {
    return gate_up.data() + expert * 2 * s.ffn * s.width;
  }
  const float* Down(const ModelShape& s, int64_t expert) const {
    return down.data() + expert * s.width * s.ffn;
  }
};
struct Model {
  std::string name;  // general.name; empty: the file has none
  ModelShape shape;
  std::vector<float> embed, output, norm;  // output empty: tied to embed
  std::vector<Layer> layers;
  Tokenizer tokenizer;
  const std::vector<float>& head() const { return output.empty() ? embed : output; }
};
// A GGUF file with F32, F16 or Q8_0 tensors of one of two architectures of llama.cpp:
//   llama         interleaved rotary pairs; with experts, as Mixtral is laid out: softmax of the
//                 gate, the best, renormalised
//   smallthinker  (arXiv 2507.20984) experts whose gate reads what enters the layer, sigmoid or
//                 softmax, ReLU; rotary pairs (i, i + d / 2), which become interleaved ones by the
//                 order of the rows of q and k; a sliding window, with full layers that do not
//                 rotate, or none. The window is the file's (llama.cpp takes 4,096 whatever it
//                 says)
// A key or tensor that changes the model and is not implemented is refused by name: Unimplemented.
absl::StatusOr<Model> LoadModel(const std::string& path);
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_MODEL_H_
