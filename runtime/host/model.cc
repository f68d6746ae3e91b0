#include "sluice/runtime/host/model.h"

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
absl::StatusOr<Model> LoadModel(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const Gguf f, Gguf::Open(path));
  SLUICE_ASSIGN_OR_RETURN(const std::string arch, f.Text("general.architecture"));
  if (arch != "llama")
    return absl::UnimplementedError(
        absl::StrCat(path, ": architecture '", arch, "'; only 'llama' is supported"));
  Model m;
  ModelShape& s = m.shape;
  SLUICE_ASSIGN_OR_RETURN(s.layers, f.Int("llama.block_count"));
  SLUICE_ASSIGN_OR_RETURN(s.width, f.Int("llama.embedding_length"));
  SLUICE_ASSIGN_OR_RETURN(s.heads, f.Int("llama.attention.head_count"));
  SLUICE_ASSIGN_OR_RETURN(s.kv_heads, f.Int("llama.attention.head_count_kv"));
  SLUICE_ASSIGN_OR_RETURN(s.ffn, f.Int("llama.feed_forward_length"));
  SLUICE_ASSIGN_OR_RETURN(s.context, f.Int("llama.context_length"));
  SLUICE_ASSIGN_OR_RETURN(const double eps, f.Real("llama.attention.layer_norm_rms_epsilon"));
  s.eps = static_cast<float>(eps);
  if (f.Has("llama.rope.freq_base")) {
    SLUICE_ASSIGN_OR_RETURN(const double base, f.Real("llama.rope.freq_base"));
    s.rope_base = static_cast<float>(base);
  }
  constexpr int64_t kLimit = int64_t{1} << 20;
  for (int64_t n : {s.layers, s.width, s.heads, s.kv_heads, s.ffn, s.context}) {
    if (n <= 0 || n > 16 * kLimit)
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": a shape value of ", n, " is outside [1, 2^24]"));
  }
  if (s.heads % s.kv_heads != 0 || s.width % s.heads != 0)
    return absl::InvalidArgumentError(absl::StrCat(path, ": width ", s.width, ", heads ", s.heads,
                                                   ", KV heads ", s.kv_heads, " do not divide"));
  s.head_dim = s.width / s.heads;
  if (f.Has("llama.attention.key_length")) {
    SLUICE_ASSIGN_OR_RETURN(s.head_dim, f.Int("llama.attention.key_length"));
  }
  SLUICE_ASSIGN_OR_RETURN(m.tokenizer, Tokenizer::Load(f));
  s.vocab = m.tokenizer.size();
  const auto u = [](int64_t n) { return static_cast<uint64_t>(n); };
  const auto read = [&](std::vector<float>* to, const std::string& name, int64_t in,
                        int64_t out) -> absl::Status {
    const uint64_t both[2] = {u(in), u(out)};
    SLUICE_ASSIGN_OR_RETURN(const std::vector<float> w,
                            f.ReadF32(name, absl::MakeConstSpan(both, out > 0 ? 2 : 1)));
    to->insert(to->end(), w.begin(), w.end());  // matrices that are multiplied together are stacked
    return absl::OkStatus();
  };
  SLUICE_RETURN_IF_ERROR(read(&m.embed, "token_embd.weight", s.width, s.vocab));
  SLUICE_RETURN_IF_ERROR(read(&m.norm, "output_norm.weight", s.width, 0));
  if (f.tensors().count("output.weight") > 0)
    SLUICE_RETURN_IF_ERROR(read(&m.output, "output.weight", s.width, s.vocab));
  for (int64_t i = 0; i < s.layers; ++i) {
    Layer l;
    const std::string p = absl::StrCat("blk.", i, ".");
    SLUICE_RETURN_IF_ERROR(read(&l.attn_norm, p + "attn_norm.weight", s.width, 0));
    SLUICE_RETURN_IF_ERROR(read(&l.qkv, p + "attn_q.weight", s.width, s.heads * s.head_dim));
    SLUICE_RETURN_IF_ERROR(read(&l.qkv, p + "attn_k.weight", s.width, s.kv_heads * s.head_dim));
    SLUICE_RETURN_IF_ERROR(read(&l.qkv, p + "attn_v.weight", s.width, s.kv_heads * s.head_dim));
    SLUICE_RETURN_IF_ERROR(
        read(&l.attn_out, p + "attn_output.weight", s.heads * s.head_dim, s.width));
    SLUICE_RETURN_IF_ERROR(read(&l.ffn_norm, p + "ffn_norm.weight", s.width, 0));
    SLUICE_RETURN_IF_ERROR(read(&l.gate_up, p + "ffn_gate.weight", s.width, s.ffn));
    SLUICE_RETURN_IF_ERROR(read(&l.gate_up, p + "ffn_up.weight", s.width, s.ffn));
    SLUICE_RETURN_IF_ERROR(read(&l.down, p + "ffn_down.weight", s.ffn, s.width));
    m.layers.push_back(std::move(l));
  }
  return m;
}
}  // namespace host
SLUICE_END_NAMESPACE
