#include "sluice/runtime/text/encoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "sluice/pruners/builtin.h"
#include "sluice/pruners/common/freeze.h"
#include "sluice/runtime/attend/attend.h"
#include "sluice/runtime/kernels/gelu/gelu.h"
#include "sluice/runtime/kernels/gemm/gemm.h"
#include "sluice/runtime/kernels/layer_norm/layer_norm.h"
#include "sluice/runtime/weights/gguf_accepts.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int64_t kTile = 64;

size_t Size(int64_t n) { return static_cast<size_t>(n); }
// Layers that a file converts; none when it has no such key.
absl::StatusOr<std::vector<int64_t>> ConvertedLayers(const Gguf& f, int64_t layers) {
  const auto it = f.values().find("sluice.shrp.layers");
  if (it == f.values().end()) return std::vector<int64_t>{};
  const auto* list = std::get_if<std::vector<int64_t>>(&it->second);
  if (list == nullptr)
    return absl::InvalidArgumentError("sluice.shrp.layers is not a list of integers");
  for (int64_t l : *list) {
    if (l < 0 || l >= layers)
      return absl::OutOfRangeError(
          absl::StrCat("sluice.shrp.layers names layer ", l, " of ", layers));
  }
  return *list;
}
// x [n, width] -> out [width].
void MeanOfRows(const float* x, int64_t n, int64_t width, float* out) {
  std::fill(out, out + width, 0.0f);
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t c = 0; c < width; ++c) out[c] += x[t * width + c];
  }
  for (int64_t c = 0; c < width; ++c) out[c] /= static_cast<float>(n);
}
absl::StatusOr<std::vector<float>> Read(const Gguf& f, const std::string& name, int64_t in,
                                        int64_t out = 0) {
  const uint64_t shape[2] = {static_cast<uint64_t>(in), static_cast<uint64_t>(out)};
  return f.ReadF32(name, absl::MakeConstSpan(shape, out > 0 ? 2 : 1));
}
absl::Status ReadNorm(const Gguf& f, const std::string& name, int64_t width, EncoderNorm& n) {
  SLUICE_ASSIGN_OR_RETURN(n.weight, Read(f, name + ".weight", width));
  SLUICE_ASSIGN_OR_RETURN(n.bias, Read(f, name + ".bias", width));
  return absl::OkStatus();
}
absl::Status ReadAffine(const Gguf& f, const std::string& name, int64_t in, int64_t out,
                        std::vector<float>& w, std::vector<float>& b) {
  SLUICE_ASSIGN_OR_RETURN(w, Read(f, name + ".weight", in, out));
  SLUICE_ASSIGN_OR_RETURN(b, Read(f, name + ".bias", out));
  return absl::OkStatus();
}
// All of a file that the encoder computes with, and what changes nothing.
absl::Status CheckContent(const Gguf& f, const EncoderShape& s) {
  GgufAccepts a;
  a.KeyPrefix("general.").KeyPrefix("quantize.").KeyPrefix("sluice.");
  a.KeyPrefix("tokenizer.");  // Tokenizer::Load has a list of its own
  for (const char* read :
       {"block_count", "embedding_length", "attention.head_count", "feed_forward_length",
        "context_length", "attention.layer_norm_epsilon", "classifier.output_labels"})
    a.Key(absl::StrCat("bert.", read));
  a.KeyIs("bert.attention.causal", {false}).KeyIs("bert.vocab_size", {s.vocab});
  for (const char* name : {"token_embd", "position_embd", "token_embd_norm", "cls.output"}) {
    a.Tensor(absl::StrCat(name, ".weight"));
    if (name != std::string("token_embd") && name != std::string("position_embd"))
      a.Tensor(absl::StrCat(name, ".bias"));
  }
  a.Tensor("golden.ids").Tensor("golden.logits").Tensor("golden.picks");  // for tests
  for (int64_t i = 0; i < s.layers; ++i) {
    for (const char* name :
         {"attn_q", "attn_k", "attn_v", "attn_output", "attn_output_norm", "ffn_up", "ffn_down",
          "layer_output_norm", "shrp.q", "shrp.k", "shrp.v", "shrp.up", "shrp.down", "shrp.router"})
      a.Tensor(absl::StrCat("blk.", i, ".", name, ".weight"))
          .Tensor(absl::StrCat("blk.", i, ".", name, ".bias"));
    a.Tensor(absl::StrCat("blk.", i, ".shrp.usage"));
  }
  SLUICE_RETURN_IF_ERROR(a.CheckKeys(f));
  return a.CheckTensors(f);
}
}  // namespace

// What one worker needs for one sequence.
struct Encoder::Scratch {
  Scratch(const EncoderShape& m, const std::vector<EncoderLayer>& layers)
      : x(Size(m.context * m.width)),
        y(x.size()),
        qkv(3 * x.size()),
        o(x.size()),
        hidden(Size(m.context * std::max(m.ffn, m.width))),
        gemm(kernels::GemmScratchFloats(Size(std::max(m.width, m.ffn)))),
        pooled(Size(m.width)) {
    PlanLayout layout;
    layout.AddBranch({.rows = (m.context + kTile - 1) / kTile, .entry_slots = 1});
    auto storage = PlanStorage::Create(layout);
    SLUICE_DCHECK(storage.ok());
    plan = *std::move(storage);
    size_t route_bytes = 0;
    for (const EncoderLayer& l : layers) {
      if (l.plan != nullptr) route_bytes = std::max(route_bytes, l.plan->info().workspace_bytes);
    }
    route_memory.Resize(route_bytes);
    picked.Reserve(1, 1);
    // All heads at once, or one.
    for (int64_t heads : {m.heads, int64_t{1}}) {
      AttendShape s;
      s.max_queries = s.max_kv = m.context;
      s.heads = s.kv_heads = static_cast<int>(heads);
      s.head_dim = s.value_dim = static_cast<int>(m.head_dim());
      s.max_tile = kTile;
      auto made = Attend::Create(s);
      SLUICE_DCHECK(made.ok());
      attend.push_back(*std::move(made));
      memory.Resize(std::max(memory.bytes(), attend.back().workspace_bytes()));
    }
  }
  void MatMul(const float* a, int64_t n, int64_t in, const float* w, int64_t out, float* c) {
    kernels::GemmNT(a, Size(in), w, Size(in), Size(n), Size(out), Size(in), c, Size(out),
                    gemm.data());
    macs += n * in * out;
  }
  // The head that a layer's router takes for the n tokens of x. The plan was made for them: the
  // router cannot fail.
  int32_t Pick(const EncoderLayer& l, int64_t n, int64_t width) {
    const int64_t rows[] = {0, n};
    RouteInputs in;
    in.items = 1;
    in.hidden = {x.data(), n, width, width};
    in.item_rows = rows;
    picked.Clear();
    const absl::Status routed =
        l.router->Run(*l.plan, in, {route_memory.workspace(), nullptr}, picked.view());
    SLUICE_DCHECK(routed.ok());
    return picked.view().unit[0];
  }
  // Every token sees every token. qkv [n, heads, 3, d] -> o [n, heads * d].
  void Attention(int64_t n, int64_t heads, int64_t d) {
    const int count = static_cast<int>(heads);
    plan->Begin(0, n, n, count, count);
    auto branch = plan->AddBranch({.scope = ListScope::kAllHeads, .tile = kTile});
    SLUICE_DCHECK(branch.ok());
    for (int64_t tile = 0; tile < branch->num_tiles(); ++tile) {
      branch->entries(tile)[0] = {.len = static_cast<uint32_t>(n), .mask = MaskClass::kNone};
      branch->set_count(tile, 1);
    }
    const int64_t row = 3 * heads * d;
    AttendInputs in;
    in.q = {qkv.data(), n, heads, d, row, 3 * d};
    in.k = {qkv.data() + d, DType::kF32, n, heads, d, row, 3 * d};
    in.v = {qkv.data() + 2 * d, DType::kF32, n, heads, d, row, 3 * d};
    in.scale = 1.0f / std::sqrt(static_cast<float>(d));
    const Attend& a = attend[heads == attend[0].shape().heads ? 0 : 1];
    AttentionCounters counted;
    AttendOutputs out;
    out.o = {o.data(), n, heads, d, heads * d, d};
    out.counters = &counted;
    const absl::Status status =
        a.Run(plan->plan(), in, {memory.workspace(), &inline_executor}, out);
    SLUICE_DCHECK(status.ok());
    macs += counted.macs;
  }
  // Heads [first, first + heads) of a layer on x [n, width] -> o [n, heads * d].
  void Heads(const EncoderLayer& l, const float* from, int64_t n, int64_t width, int64_t first,
             int64_t heads, int64_t d) {
    const int64_t rows = 3 * heads * d;
    MatMul(from, n, width, l.qkv.data() + first * 3 * d * width, rows, qkv.data());
    const float* bias = l.qkv_bias.data() + first * 3 * d;
    for (int64_t t = 0; t < n; ++t)
      for (int64_t c = 0; c < rows; ++c) qkv[Size(t * rows + c)] += bias[c];
    Attention(n, heads, d);
  }
  std::vector<float> x, y, qkv, o, hidden, gemm, pooled;
  std::unique_ptr<PlanStorage> plan;
  std::vector<Attend> attend;
  OwnedWorkspace memory, route_memory;
  AssignmentBuffer picked;
  InlineExecutor inline_executor;
  int64_t macs = 0;
};

absl::Status Encoder::MakeRouter(const Gguf& f, int64_t i, EncoderLayer& l) const {
  SLUICE_ASSIGN_OR_RETURN(const std::string method, f.Text("sluice.method"));
  SLUICE_ASSIGN_OR_RETURN(l.router,
                          BuiltinPruners().routers.Create(absl::StrCat(method, ":layer=", i), &f));
  const RouteTraits& t = l.router->traits();
  if (t.domain != Domain::kHead || t.reads != kReadsHidden)
    return absl::InvalidArgumentError(absl::StrCat(
        t.name, " cannot route an encoder's heads; allowed: head routers that read hidden states"));
  SLUICE_ASSIGN_OR_RETURN(
      l.plan,
      l.router->MakePlan(
          {.items = 1, .units = shape_.heads, .hidden = shape_.width, .rows = shape_.context}));
  if (l.plan->info().max_entries != 1)
    return absl::InvalidArgumentError(absl::StrCat(t.name, " gives an item up to ",
                                                   l.plan->info().max_entries,
                                                   " heads; this encoder runs one"));
  return absl::OkStatus();
}

absl::Status Encoder::ReadLayer(const Gguf& f, int64_t i, bool converted, EncoderLayer& l) const {
  const int64_t width = shape_.width, d = shape_.head_dim();
  const std::string p = absl::StrCat("blk.", i, ".");
  std::vector<float> part[3], part_bias[3];
  l.dense = !converted;
  l.experts = shape_.heads;
  if (converted) {
    SLUICE_ASSIGN_OR_RETURN(const std::string form, f.Text("sluice.shrp.form"));
    if (form != "routed" && form != "pruned")
      return absl::InvalidArgumentError(
          absl::StrCat("sluice.shrp.form '", form, "'; allowed: routed, pruned"));
    l.experts = form == "routed" ? shape_.heads : 1;
    SLUICE_ASSIGN_OR_RETURN(const int64_t expand, f.Int("sluice.shrp.expand"));
    if (expand < 1 || expand > shape_.ffn)
      return absl::InvalidArgumentError(
          absl::StrCat("sluice.shrp.expand ", expand, "; allowed 1 to ", shape_.ffn));
    if (l.experts > 1) {
      SLUICE_RETURN_IF_ERROR(MakeRouter(f, i, l));
      SLUICE_ASSIGN_OR_RETURN(l.usage, Read(f, p + "shrp.usage", shape_.heads));
    }
    SLUICE_RETURN_IF_ERROR(ReadAffine(f, p + "shrp.up", d, expand, l.up, l.up_bias));
    SLUICE_RETURN_IF_ERROR(ReadAffine(f, p + "shrp.down", expand, width, l.down, l.down_bias));
  } else {
    SLUICE_RETURN_IF_ERROR(ReadAffine(f, p + "attn_output", width, width, l.out, l.out_bias));
    SLUICE_RETURN_IF_ERROR(ReadNorm(f, p + "attn_output_norm", width, l.middle));
    SLUICE_RETURN_IF_ERROR(ReadAffine(f, p + "ffn_up", width, shape_.ffn, l.up, l.up_bias));
    SLUICE_RETURN_IF_ERROR(ReadAffine(f, p + "ffn_down", shape_.ffn, width, l.down, l.down_bias));
  }
  SLUICE_RETURN_IF_ERROR(ReadNorm(f, p + "layer_output_norm", width, l.last));
  for (int n = 0; n < 3; ++n) {
    const char letter = "qkv"[n];
    SLUICE_RETURN_IF_ERROR(ReadAffine(f,
                                      converted ? absl::StrCat(p, "shrp.", std::string(1, letter))
                                                : absl::StrCat(p, "attn_", std::string(1, letter)),
                                      width, l.experts * d, part[n], part_bias[n]));
  }
  for (int64_t e = 0; e < l.experts; ++e) {
    for (int n = 0; n < 3; ++n) {
      l.qkv.insert(l.qkv.end(), part[n].begin() + e * d * width,
                   part[n].begin() + (e + 1) * d * width);
      l.qkv_bias.insert(l.qkv_bias.end(), part_bias[n].begin() + e * d,
                        part_bias[n].begin() + (e + 1) * d);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Encoder> Encoder::Load(const Gguf& file, const Gguf* conversion) {
  SLUICE_ASSIGN_OR_RETURN(const std::string arch, file.Text("general.architecture"));
  if (arch != "bert")
    return absl::UnimplementedError(
        absl::StrCat("architecture '", arch, "'; only 'bert' is supported"));
  Encoder e;
  EncoderShape& s = e.shape_;
  SLUICE_ASSIGN_OR_RETURN(s.layers, file.Int("bert.block_count"));
  SLUICE_ASSIGN_OR_RETURN(s.width, file.Int("bert.embedding_length"));
  SLUICE_ASSIGN_OR_RETURN(s.heads, file.Int("bert.attention.head_count"));
  SLUICE_ASSIGN_OR_RETURN(s.ffn, file.Int("bert.feed_forward_length"));
  SLUICE_ASSIGN_OR_RETURN(s.context, file.Int("bert.context_length"));
  SLUICE_ASSIGN_OR_RETURN(const double eps, file.Real("bert.attention.layer_norm_epsilon"));
  if (!(eps >= 0 && eps <= 1))
    return absl::OutOfRangeError(
        absl::StrCat("'bert.attention.layer_norm_epsilon' is ", eps, "; allowed: 0 to 1"));
  s.eps = static_cast<float>(eps);
  for (int64_t n : {s.layers, s.width, s.heads, s.ffn, s.context}) {
    if (n <= 0 || n > (1 << 16))
      return absl::InvalidArgumentError(
          absl::StrCat("a shape value of ", n, " is outside [1, 65536]"));
  }
  if (s.width % s.heads != 0)
    return absl::InvalidArgumentError(
        absl::StrCat("width ", s.width, " and ", s.heads, " heads do not divide"));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::string>* labels,
                          file.Texts("bert.classifier.output_labels"));
  e.labels_ = *labels;
  s.classes = static_cast<int64_t>(e.labels_.size());
  if (file.Has("tokenizer.ggml.tokens")) {
    SLUICE_ASSIGN_OR_RETURN(e.tokenizer_, Tokenizer::Load(file));
  }
  SLUICE_ASSIGN_OR_RETURN(const GgufTensor* table, file.Tensor("token_embd.weight"));
  s.vocab = static_cast<int64_t>(table->elements) / s.width;
  SLUICE_RETURN_IF_ERROR(CheckContent(file, s));
  if (conversion != nullptr) SLUICE_RETURN_IF_ERROR(CheckContent(*conversion, s));
  SLUICE_ASSIGN_OR_RETURN(e.tokens_, Read(file, "token_embd.weight", s.width, s.vocab));
  SLUICE_ASSIGN_OR_RETURN(e.places_, Read(file, "position_embd.weight", s.width, s.context));
  SLUICE_RETURN_IF_ERROR(ReadNorm(file, "token_embd_norm", s.width, e.norm_));
  const Gguf& from = conversion != nullptr ? *conversion : file;
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int64_t> list, ConvertedLayers(from, s.layers));
  const std::set<int64_t> converted(list.begin(), list.end());
  if (conversion != nullptr && converted.empty())
    return absl::InvalidArgumentError("the conversion file has no sluice.shrp.layers");
  SLUICE_RETURN_IF_ERROR(
      ReadAffine(from, "cls.output", s.width, s.classes, e.classifier_, e.classifier_bias_));
  e.layers_.resize(Size(s.layers));
  for (int64_t i = 0; i < s.layers; ++i) {
    const bool cut = converted.count(i) > 0;
    SLUICE_RETURN_IF_ERROR(e.ReadLayer(cut ? from : file, i, cut, e.layers_[Size(i)]));
  }
  return e;
}

Encoder Encoder::Pruned() const {
  Encoder e = *this;
  const int64_t d = shape_.head_dim(), rows = 3 * d;
  for (EncoderLayer& l : e.layers_) {
    if (l.router == nullptr) continue;
    const int64_t keep = std::max<int64_t>(0, pruning::MostUsed(absl::MakeConstSpan(l.usage)));
    l.qkv = std::vector<float>(l.qkv.begin() + keep * rows * shape_.width,
                               l.qkv.begin() + (keep + 1) * rows * shape_.width);
    l.qkv_bias = std::vector<float>(l.qkv_bias.begin() + keep * rows,
                                    l.qkv_bias.begin() + (keep + 1) * rows);
    l.experts = 1;
    l.router.reset();
    l.plan.reset();
    l.router_parameters = 0;
    l.usage.clear();
  }
  return e;
}

absl::Status Encoder::WritePruned(const Gguf& file, const Gguf& conversion,
                                  const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const Encoder whole, Load(file, &conversion));
  const Encoder cut = whole.Pruned();
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int64_t> list,
                          ConvertedLayers(conversion, cut.shape_.layers));
  SLUICE_ASSIGN_OR_RETURN(const int64_t expand, conversion.Int("sluice.shrp.expand"));
  GgufWriter out;
  for (const auto& [key, value] : file.values()) out.Set(key, value);
  out.Set("sluice.method", std::string("shrp"));
  out.Set("sluice.shrp.form", std::string("pruned"));
  out.Set("sluice.shrp.expand", expand);
  out.Set("sluice.shrp.layers", list);
  const auto replaced = [&](const std::string& name) {
    if (name.rfind("golden.", 0) == 0 || name.rfind("cls.", 0) == 0) return true;
    return std::any_of(list.begin(), list.end(),
                       [&](int64_t l) { return name.rfind(absl::StrCat("blk.", l, "."), 0) == 0; });
  };
  for (const auto& [name, tensor] : file.tensors()) {
    if (!replaced(name)) out.Copy(tensor);
  }
  const EncoderShape& s = cut.shape_;
  const auto add = [&](const std::string& name, int64_t in, int64_t rows, const float* data) {
    const uint64_t shape[2] = {static_cast<uint64_t>(in), static_cast<uint64_t>(rows)};
    return out.Add(name, absl::MakeConstSpan(shape, rows > 0 ? 2 : 1),
                   absl::MakeConstSpan(data, Size(in * std::max<int64_t>(1, rows))),
                   rows > 0 ? GgufType::kF16 : GgufType::kF32);
  };
  SLUICE_RETURN_IF_ERROR(add("cls.output.weight", s.width, s.classes, cut.classifier_.data()));
  SLUICE_RETURN_IF_ERROR(add("cls.output.bias", s.classes, 0, cut.classifier_bias_.data()));
  const int64_t d = s.head_dim();
  for (int64_t i : list) {
    const EncoderLayer& l = cut.layers_[Size(i)];
    const std::string p = absl::StrCat("blk.", i, ".");
    for (int64_t n = 0; n < 3; ++n) {
      const std::string at = absl::StrCat(p, "shrp.", std::string(1, "qkv"[n]));
      SLUICE_RETURN_IF_ERROR(add(at + ".weight", s.width, d, l.qkv.data() + n * d * s.width));
      SLUICE_RETURN_IF_ERROR(add(at + ".bias", d, 0, l.qkv_bias.data() + n * d));
    }
    SLUICE_RETURN_IF_ERROR(add(p + "shrp.up.weight", d, expand, l.up.data()));
    SLUICE_RETURN_IF_ERROR(add(p + "shrp.up.bias", expand, 0, l.up_bias.data()));
    SLUICE_RETURN_IF_ERROR(add(p + "shrp.down.weight", expand, s.width, l.down.data()));
    SLUICE_RETURN_IF_ERROR(add(p + "shrp.down.bias", s.width, 0, l.down_bias.data()));
    SLUICE_RETURN_IF_ERROR(add(p + "layer_output_norm.weight", s.width, 0, l.last.weight.data()));
    SLUICE_RETURN_IF_ERROR(add(p + "layer_output_norm.bias", s.width, 0, l.last.bias.data()));
  }
  return out.Write(path);
}

int64_t Encoder::layer_parameters() const {
  size_t n = 0;
  for (const EncoderLayer& l : layers_) {
    for (const std::vector<float>* w :
         {&l.qkv, &l.qkv_bias, &l.out, &l.out_bias, &l.up, &l.up_bias, &l.down, &l.down_bias,
          &l.middle.weight, &l.middle.bias, &l.last.weight, &l.last.bias})
      n += w->size();
    n += Size(l.router_parameters);
  }
  return static_cast<int64_t>(n);
}

void Encoder::RunOne(const std::vector<int32_t>& ids, const std::vector<int32_t>& forced,
                     Scratch& s, float* logits, int32_t* picks) const {
  const EncoderShape& m = shape_;
  const int64_t n = std::min<int64_t>(static_cast<int64_t>(ids.size()), m.context), width = m.width,
                d = m.head_dim();
  const auto norm = [&](const EncoderNorm& w, float* x) {
    for (int64_t t = 0; t < n; ++t)
      kernels::LayerNorm(x + t * width, w.weight.data(), w.bias.data(), Size(width), m.eps,
                         x + t * width);
  };
  for (int64_t t = 0; t < n; ++t) {
    const float *a = &tokens_[Size(ids[Size(t)] * width)], *b = &places_[Size(t * width)];
    for (int64_t c = 0; c < width; ++c) s.x[Size(t * width + c)] = a[c] + b[c];
  }
  norm(norm_, s.x.data());
  // x += down(gelu(up(from))) + bias
  const auto feed = [&](const EncoderLayer& l, const float* from, int64_t in) {
    const int64_t inner = static_cast<int64_t>(l.up_bias.size());
    s.MatMul(from, n, in, l.up.data(), inner, s.hidden.data());
    for (int64_t t = 0; t < n; ++t)
      kernels::BiasGelu(&s.hidden[Size(t * inner)], l.up_bias.data(), Size(inner),
                        &s.hidden[Size(t * inner)]);
    s.MatMul(s.hidden.data(), n, inner, l.down.data(), width, s.y.data());
    for (int64_t t = 0; t < n; ++t)
      for (int64_t c = 0; c < width; ++c)
        s.x[Size(t * width + c)] += s.y[Size(t * width + c)] + l.down_bias[Size(c)];
  };
  for (size_t i = 0; i < layers_.size(); ++i) {
    const EncoderLayer& l = layers_[i];
    picks[i] = -1;
    if (l.dense) {
      s.Heads(l, s.x.data(), n, width, 0, m.heads, d);
      s.MatMul(s.o.data(), n, width, l.out.data(), width, s.y.data());
      for (int64_t t = 0; t < n; ++t)
        for (int64_t c = 0; c < width; ++c)
          s.x[Size(t * width + c)] += s.y[Size(t * width + c)] + l.out_bias[Size(c)];
      norm(l.middle, s.x.data());
      feed(l, s.x.data(), width);
    } else {
      int32_t pick = 0;
      if (!forced.empty() && forced[i] >= 0) {
        pick = forced[i];
      } else if (l.router != nullptr) {
        pick = s.Pick(l, n, width);
        s.macs += width * m.heads;
      }
      picks[i] = pick;
      s.Heads(l, s.x.data(), n, width, pick, 1, d);
      feed(l, s.o.data(), d);
    }
    norm(l.last, s.x.data());
  }
  MeanOfRows(s.x.data(), n, width, s.pooled.data());
  for (int64_t c = 0; c < m.classes; ++c) {
    double sum = static_cast<double>(classifier_bias_[Size(c)]);
    for (int64_t j = 0; j < width; ++j)
      sum += static_cast<double>(classifier_[Size(c * width + j)]) *
             static_cast<double>(s.pooled[Size(j)]);
    logits[c] = static_cast<float>(sum);
  }
}

absl::StatusOr<Encoder::Result> Encoder::Run(const std::vector<std::vector<int32_t>>& sequences,
                                             Executor& executor,
                                             const std::vector<int32_t>& forced) const {
  if (!forced.empty() && static_cast<int64_t>(forced.size()) != shape_.layers)
    return absl::InvalidArgumentError(
        absl::StrCat(forced.size(), " forced heads, wanted one a layer: ", shape_.layers));
  for (size_t i = 0; i < forced.size(); ++i) {
    if (forced[i] >= layers_[i].experts)
      return absl::OutOfRangeError(
          absl::StrCat("head ", forced[i], " of layer ", i, ", which has ", layers_[i].experts));
  }
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (sequences[i].empty())
      return absl::InvalidArgumentError(absl::StrCat("sequence ", i, " is empty"));
    for (int32_t id : sequences[i]) {
      if (id < 0 || id >= shape_.vocab)
        return absl::OutOfRangeError(
            absl::StrCat("token ", id, " of sequence ", i, "; allowed 0 to ", shape_.vocab - 1));
    }
  }
  Result r;
  r.logits.resize(sequences.size() * Size(shape_.classes));
  r.picks.resize(sequences.size() * layers_.size());
  std::vector<std::unique_ptr<Scratch>> scratch(Size(executor.num_workers()));
  for (auto& s : scratch) s = std::make_unique<Scratch>(shape_, layers_);
  executor.ParallelFor(
      static_cast<int64_t>(sequences.size()), 1, [&](int64_t b, int64_t e, int worker) {
        for (int64_t i = b; i < e; ++i)
          RunOne(sequences[Size(i)], forced, *scratch[Size(worker)],
                 &r.logits[Size(i * shape_.classes)], &r.picks[Size(i) * layers_.size()]);
      });
  for (const auto& s : scratch) r.macs += s->macs;
  return r;
}

std::vector<float> Encoder::HeadOutputs(int64_t layer, int64_t first, int64_t heads,
                                        const std::vector<float>& x) const {
  const EncoderLayer& l = layers_[Size(layer)];
  const int64_t d = shape_.head_dim(), n = static_cast<int64_t>(x.size()) / shape_.width;
  Scratch s(shape_, layers_);
  s.Heads(l, x.data(), n, shape_.width, first, heads, d);
  return {s.o.begin(), s.o.begin() + n * heads * d};
}
SLUICE_END_NAMESPACE
