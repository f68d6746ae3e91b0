#ifndef SLUICE_RUNTIME_LAB_PRUNE_LAYER_MATRICES_H_
#define SLUICE_RUNTIME_LAB_PRUNE_LAYER_MATRICES_H_
// The matrices of a dense layer: tensors of the file, and where the host has them.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/model.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// Files are changed by the keys of one architecture, whose rows of q and k stand in the host as in
// the file.
inline absl::Status CheckArchitecture(const Gguf& file, const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const std::string architecture, file.Text("general.architecture"));
  if (architecture == "llama") return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat(path, ": pruning the architecture '", architecture, "'; implemented: 'llama'"));
}

struct LayerMatrix {
  std::string part;  // "attn_q"; its tensor is blk.LAYER.attn_q.weight
  host::MatrixInput input;
  int64_t rows = 0, cols = 0;
  float* weights = nullptr;  // [rows, cols], the host's

  bool ffn() const {
    return input == host::MatrixInput::kFfn || input == host::MatrixInput::kFfnDown;
  }
  std::string Tensor(int64_t layer) const {
    return absl::StrCat("blk.", layer, ".", part, ".weight");
  }
};
inline std::vector<LayerMatrix> LayerMatrices(host::Model& model, int64_t layer) {
  using host::MatrixInput;
  const host::ModelShape& s = model.shape;
  host::Layer& l = model.layers[static_cast<size_t>(layer)];
  const int64_t q = s.heads * s.head_dim;
  const int64_t kv = s.kv_heads * s.head_dim;
  float* qkv = l.qkv.data();
  float* gate_up = l.gate_up.data();
  return {
      {"attn_q", MatrixInput::kAttention, q, s.width, qkv},
      {"attn_k", MatrixInput::kAttention, kv, s.width, qkv + q * s.width},
      {"attn_v", MatrixInput::kAttention, kv, s.width, qkv + (q + kv) * s.width},
      {"attn_output", MatrixInput::kAttentionOut, s.width, q, l.attn_out.data()},
      {"ffn_gate", MatrixInput::kFfn, s.ffn, s.width, gate_up},
      {"ffn_up", MatrixInput::kFfn, s.ffn, s.width, gate_up + s.ffn * s.width},
      {"ffn_down", MatrixInput::kFfnDown, s.width, s.ffn, l.down.data()},
  };
}
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_LAYER_MATRICES_H_
