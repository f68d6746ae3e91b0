#include "sluice/runtime/host/model.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/runtime/weights/gguf_accepts.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace {
constexpr int64_t kMostOfAShape = int64_t{1} << 24;
constexpr int64_t kMostExperts = 4096;

absl::StatusOr<int64_t> ReadSize(const Gguf& f, const std::string& key) {
  SLUICE_ASSIGN_OR_RETURN(const int64_t n, f.Int(key));
  if (n < 1 || n > kMostOfAShape)
    return absl::OutOfRangeError(
        absl::StrCat("'", key, "' is ", n, "; allowed: 1 to ", kMostOfAShape));
  return n;
}
// NaN is in no range.
absl::StatusOr<float> ReadReal(const Gguf& f, const std::string& key, double low, double high) {
  SLUICE_ASSIGN_OR_RETURN(const double x, f.Real(key));
  if (!(x >= low && x <= high))
    return absl::OutOfRangeError(
        absl::StrCat("'", key, "' is ", x, "; allowed: ", low, " to ", high));
  return static_cast<float>(x);
}

constexpr char kLlama[] = "llama";
constexpr char kSmallThinker[] = "smallthinker";

// `at`: the architecture's name and a point, with which its keys begin.
absl::Status ReadExperts(const Gguf& f, const std::string& at, ModelShape& s) {
  if (f.Has(at + "expert_count")) {
    SLUICE_ASSIGN_OR_RETURN(s.experts, f.Int(at + "expert_count"));
  }
  if (f.Has(at + "expert_used_count")) {
    SLUICE_ASSIGN_OR_RETURN(s.experts_used, f.Int(at + "expert_used_count"));
  }
  const bool may_be_dense = at == absl::StrCat(kLlama, ".");
  const bool dense = may_be_dense && s.experts == 0 && s.experts_used == 0;
  const bool fits = s.experts >= 1 && s.experts <= kMostExperts && s.experts_used >= 1 &&
                    s.experts_used <= s.experts;
  if (dense || fits) return absl::OkStatus();
  return absl::OutOfRangeError(
      absl::StrCat("'", at, "expert_count' is ", s.experts, " and '", at, "expert_used_count' ",
                   s.experts_used, "; allowed: ", may_be_dense ? "both 0, or " : "", "1 to ",
                   kMostExperts, " experts, of which 1 or more are used"));
}

// What of a shape only this architecture has.
absl::Status ReadSmallThinker(const Gguf& f, const std::string& at, ModelShape& s) {
  s.gate_input = GateInput::kEntering;
  s.activation = Activation::kRelu;
  constexpr int64_t kSoftmax = 1;
  constexpr int64_t kSigmoid = 2;
  SLUICE_ASSIGN_OR_RETURN(const int64_t gate, f.Int(at + "expert_gating_func"));
  if (gate != kSoftmax && gate != kSigmoid)
    return absl::UnimplementedError(absl::StrCat("'", at, "expert_gating_func' is ", gate,
                                                 "; implemented: 1 (softmax), 2 (sigmoid)"));
  s.sigmoid_gate = gate == kSigmoid;
  if (f.Has(at + "expert_feed_forward_length")) {
    SLUICE_ASSIGN_OR_RETURN(s.ffn, ReadSize(f, at + "expert_feed_forward_length"));
  }
  if (f.Has(at + "attention.sliding_window")) {
    SLUICE_ASSIGN_OR_RETURN(s.window, f.Int(at + "attention.sliding_window"));
    if (s.window < 0 || s.window > kMostOfAShape)
      return absl::OutOfRangeError(absl::StrCat("'", at, "attention.sliding_window' is ", s.window,
                                                "; allowed: 0 (none) to ", kMostOfAShape));
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelShape> ReadShape(const Gguf& f, const std::string& arch) {
  ModelShape s;
  const std::string at = arch + ".";
  SLUICE_ASSIGN_OR_RETURN(s.layers, ReadSize(f, at + "block_count"));
  SLUICE_ASSIGN_OR_RETURN(s.width, ReadSize(f, at + "embedding_length"));
  SLUICE_ASSIGN_OR_RETURN(s.heads, ReadSize(f, at + "attention.head_count"));
  s.kv_heads = s.heads;
  if (f.Has(at + "attention.head_count_kv")) {
    SLUICE_ASSIGN_OR_RETURN(s.kv_heads, ReadSize(f, at + "attention.head_count_kv"));
  }
  SLUICE_ASSIGN_OR_RETURN(s.ffn, ReadSize(f, at + "feed_forward_length"));
  SLUICE_ASSIGN_OR_RETURN(s.context, ReadSize(f, at + "context_length"));
  SLUICE_RETURN_IF_ERROR(ReadExperts(f, at, s));
  SLUICE_ASSIGN_OR_RETURN(s.eps, ReadReal(f, at + "attention.layer_norm_rms_epsilon", 1e-12, 1));
  if (f.Has(at + "rope.freq_base")) {
    SLUICE_ASSIGN_OR_RETURN(s.rope_base, ReadReal(f, at + "rope.freq_base", 1, 1e12));
  }
  if (arch == kSmallThinker) SLUICE_RETURN_IF_ERROR(ReadSmallThinker(f, at, s));
  if (s.heads % s.kv_heads != 0)
    return absl::InvalidArgumentError(
        absl::StrCat(s.heads, " heads are no multiple of ", s.kv_heads, " KV heads"));
  if (f.Has(at + "attention.key_length")) {
    SLUICE_ASSIGN_OR_RETURN(s.head_dim, ReadSize(f, at + "attention.key_length"));
  } else {
    if (s.width % s.heads != 0)
      return absl::InvalidArgumentError(
          absl::StrCat("the width ", s.width, " is no multiple of ", s.heads, " heads"));
    s.head_dim = s.width / s.heads;
  }
  if (s.head_dim % 2 != 0 || s.head_dim > 4096)
    return absl::InvalidArgumentError(absl::StrCat(
        "heads are ", s.head_dim, " wide; allowed: even widths up to 4096, for rotary pairs"));
  return s;
}

// All of a file that the host computes with, and what changes nothing. Whatever is not here is
// refused: a model that runs without it answers, but as another model.
absl::Status CheckContent(const Gguf& f, const std::string& arch, const ModelShape& s) {
  const std::string at = arch + ".";
  GgufAccepts a;
  a.KeyPrefix("general.").KeyIs("general.type", {std::string("model")}).KeyPrefix("quantize.");
  a.KeyPrefix("tokenizer.");  // Tokenizer::Load has a list of its own
  for (const char* read :
       {"block_count", "embedding_length", "attention.head_count", "attention.head_count_kv",
        "feed_forward_length", "context_length", "attention.layer_norm_rms_epsilon",
        "rope.freq_base", "expert_count", "expert_used_count"})
    a.Key(at + read);
  // Keys whose one implemented value is how the host computes anyway.
  a.KeyIs(at + "vocab_size", {s.vocab})
      .KeyIs(at + "rope.dimension_count", {s.head_dim})
      .KeyIs(at + "rope.scaling.type", {std::string("none")})
      .KeyIs(at + "attention.key_length", {s.head_dim})
      .KeyIs(at + "attention.value_length", {s.head_dim})
      .KeyIs(at + "attention.causal", {true})
      .KeyIs(at + "attention.clamp_kqv", {0.0})
      .KeyIs(at + "logit_scale", {1.0})
      .KeyIs(at + "tensor_data_layout", {std::string("Meta AI original pth")})
      .KeyIs("split.count", {int64_t{0}, int64_t{1}})
      .KeyIs("split.no", {int64_t{0}})
      .KeyIs("split.tensors.count", {static_cast<int64_t>(f.tensors().size())});
  if (arch == kSmallThinker) {
    a.Key(at + "expert_gating_func")
        .Key(at + "expert_feed_forward_length")
        .Key(at + "attention.sliding_window")
        .KeyIs(at + "attention.sliding_window_pattern", {ModelShape::kFullEvery})
        .KeyIs(at + "rope.freq_base_swa", {static_cast<double>(s.rope_base)})
        .KeyIs(at + "expert_weights_norm", {true})
        .KeyIs(at + "expert_weights_scale", {1.0});
  } else {
    a.KeyIs(at + "attention.sliding_window", {int64_t{0}});
  }
  a.Tensor("token_embd.weight").Tensor("output_norm.weight").Tensor("output.weight");
  for (int64_t i = 0; i < s.layers; ++i) {
    for (const char* name : {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"})
      a.Tensor(absl::StrCat("blk.", i, ".", name, ".weight"));
    if (s.experts > 0) a.Tensor(absl::StrCat("blk.", i, ".ffn_gate_inp.weight"));
    for (const char* name : {"ffn_gate", "ffn_up", "ffn_down"})
      a.Tensor(absl::StrCat("blk.", i, ".", name, s.experts > 0 ? "_exps" : "", ".weight"));
  }
  SLUICE_RETURN_IF_ERROR(a.CheckKeys(f));
  return a.CheckTensors(f);
}

// Appends a tensor [out, in], or [in] with `out` 0: matrices that are multiplied together are
// stacked.
absl::Status Append(const Gguf& f, const std::string& name, int64_t in, int64_t out,
                    std::vector<float>& to) {
  const uint64_t both[2] = {static_cast<uint64_t>(in), static_cast<uint64_t>(out)};
  SLUICE_ASSIGN_OR_RETURN(const std::vector<float> w,
                          f.ReadF32(name, absl::MakeConstSpan(both, out > 0 ? 2 : 1)));
  to.insert(to.end(), w.begin(), w.end());
  return absl::OkStatus();
}
// A file has the gates of all experts behind each other, and so on; the host wants an expert's
// matrices together.
absl::Status ReadExpertsOf(const Gguf& f, const ModelShape& s, const std::string& prefix,
                           Layer& l) {
  SLUICE_RETURN_IF_ERROR(
      Append(f, prefix + "ffn_gate_inp.weight", s.width, s.experts, l.expert_gate));
  const auto read = [&](const char* name, int64_t in, int64_t out) {
    const uint64_t shape[] = {static_cast<uint64_t>(in), static_cast<uint64_t>(out),
                              static_cast<uint64_t>(s.experts)};
    return f.ReadF32(absl::StrCat(prefix, name, ".weight"), shape);
  };
  SLUICE_ASSIGN_OR_RETURN(const std::vector<float> gate, read("ffn_gate_exps", s.width, s.ffn));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<float> up, read("ffn_up_exps", s.width, s.ffn));
  SLUICE_ASSIGN_OR_RETURN(l.down, read("ffn_down_exps", s.ffn, s.width));
  const int64_t size = s.width * s.ffn;
  l.gate_up.reserve(gate.size() + up.size());
  for (int64_t e = 0; e < s.experts; ++e) {
    for (const std::vector<float>* part : {&gate, &up}) {
      const auto from = part->begin() + e * size;
      l.gate_up.insert(l.gate_up.end(), from, from + size);
    }
  }
  return absl::OkStatus();
}
// The rows of heads whose pairs are (i, i + d / 2), in the order of pairs (2 i, 2 i + 1): products
// of queries and keys that are both moved so stay the same. `rows` [heads d, width].
void InterleavePairs(const ModelShape& s, float* rows, int64_t heads) {
  const int64_t half = s.head_dim / 2;
  std::vector<float> head(static_cast<size_t>(s.head_dim * s.width));
  for (int64_t h = 0; h < heads; ++h) {
    float* at = rows + h * s.head_dim * s.width;
    std::copy_n(at, head.size(), head.begin());
    for (int64_t i = 0; i < s.head_dim; ++i) {
      const int64_t to = i < half ? 2 * i : 2 * (i - half) + 1;
      std::copy_n(head.begin() + i * s.width, s.width, at + to * s.width);
    }
  }
}
absl::Status ReadLayer(const Gguf& f, const std::string& arch, const ModelShape& s, int64_t i,
                       Layer& l) {
  const std::string p = absl::StrCat("blk.", i, ".");
  const int64_t q = s.heads * s.head_dim;
  const int64_t kv = s.kv_heads * s.head_dim;
  SLUICE_RETURN_IF_ERROR(Append(f, p + "attn_norm.weight", s.width, 0, l.attn_norm));
  SLUICE_RETURN_IF_ERROR(Append(f, p + "attn_q.weight", s.width, q, l.qkv));
  SLUICE_RETURN_IF_ERROR(Append(f, p + "attn_k.weight", s.width, kv, l.qkv));
  SLUICE_RETURN_IF_ERROR(Append(f, p + "attn_v.weight", s.width, kv, l.qkv));
  if (arch == kSmallThinker) InterleavePairs(s, l.qkv.data(), s.heads + s.kv_heads);
  SLUICE_RETURN_IF_ERROR(Append(f, p + "attn_output.weight", q, s.width, l.attn_out));
  SLUICE_RETURN_IF_ERROR(Append(f, p + "ffn_norm.weight", s.width, 0, l.ffn_norm));
  if (s.experts > 0) return ReadExpertsOf(f, s, p, l);
  SLUICE_RETURN_IF_ERROR(Append(f, p + "ffn_gate.weight", s.width, s.ffn, l.gate_up));
  SLUICE_RETURN_IF_ERROR(Append(f, p + "ffn_up.weight", s.width, s.ffn, l.gate_up));
  return Append(f, p + "ffn_down.weight", s.ffn, s.width, l.down);
}

absl::StatusOr<Model> ReadModel(const Gguf& f) {
  SLUICE_ASSIGN_OR_RETURN(const std::string arch, f.Text("general.architecture"));
  if (arch != kLlama && arch != kSmallThinker)
    return absl::UnimplementedError(absl::StrCat("architecture '", arch, "'; supported: '", kLlama,
                                                 "', '", kSmallThinker, "'"));
  Model m;
  m.name = f.Text("general.name").value_or("");
  SLUICE_ASSIGN_OR_RETURN(m.shape, ReadShape(f, arch));
  ModelShape& s = m.shape;
  SLUICE_ASSIGN_OR_RETURN(m.tokenizer, Tokenizer::Load(f));
  s.vocab = m.tokenizer.size();
  // More layers than tensors cannot be, and would be a long list to check against.
  if (s.layers > static_cast<int64_t>(f.tensors().size()))
    return absl::InvalidArgumentError(absl::StrCat("'", arch, ".block_count' is ", s.layers,
                                                   ", but the file has ", f.tensors().size(),
                                                   " tensors"));
  SLUICE_RETURN_IF_ERROR(CheckContent(f, arch, s));
  SLUICE_RETURN_IF_ERROR(Append(f, "token_embd.weight", s.width, s.vocab, m.embed));
  SLUICE_RETURN_IF_ERROR(Append(f, "output_norm.weight", s.width, 0, m.norm));
  if (f.tensors().count("output.weight") > 0)
    SLUICE_RETURN_IF_ERROR(Append(f, "output.weight", s.width, s.vocab, m.output));
  for (int64_t i = 0; i < s.layers; ++i)
    SLUICE_RETURN_IF_ERROR(ReadLayer(f, arch, s, i, m.layers.emplace_back()));
  return m;
}
}  // namespace

absl::StatusOr<Model> LoadModel(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const Gguf f, Gguf::Open(path));
  auto model = ReadModel(f);
  if (!model.ok())
    return absl::Status(model.status().code(), absl::StrCat(path, ": ", model.status().message()));
  return model;
}
}  // namespace host
SLUICE_END_NAMESPACE
