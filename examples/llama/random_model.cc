#include "sluice/examples/llama/random_model.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "sluice/api/check.h"
#include "sluice/api/dtype.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace llama {
namespace {
constexpr absl::string_view kPrefix = "random:";
constexpr int64_t kContext = 131072;
constexpr int64_t kPiece = int64_t{4} << 20;  // bytes written at once

constexpr RandomShape kShapes[] = {
    {.name = "1B",
     .of = "Llama 3.2 1B",
     .layers = 16,
     .width = 2048,
     .heads = 32,
     .kv_heads = 8,
     .head = 64,
     .ffn = 8192,
     .vocabulary = 128256},
    {.name = "4B",
     .of = "Qwen3 4B",
     .layers = 36,
     .width = 2560,
     .heads = 32,
     .kv_heads = 8,
     .head = 128,
     .ffn = 9728,
     .vocabulary = 151936},
    {.name = "8B",
     .of = "Llama 3.1 8B",
     .layers = 32,
     .width = 4096,
     .heads = 32,
     .kv_heads = 8,
     .head = 128,
     .ffn = 14336,
     .vocabulary = 128256,
     .tied = false},
    {.name = "tiny",
     .of = "nothing, for tests",
     .layers = 2,
     .width = 64,
     .heads = 4,
     .kv_heads = 2,
     .head = 32,
     .ffn = 128,
     .vocabulary = 256},
};

// Blocks of 32 elements: a scale in f16, then the elements in `bits` each.
struct BlockType {
  const char* name;
  uint32_t tensor_type;  // the format's numbers
  uint32_t file_type;
  int64_t bits;
  double deviation;  // of an element over uniform bits, before the scale
};
constexpr int64_t kBlock = 32;
constexpr BlockType kTypes[] = {
    {.name = "q8_0", .tensor_type = 8, .file_type = 7, .bits = 8, .deviation = 73.9},
    {.name = "q4_0", .tensor_type = 2, .file_type = 2, .bits = 4, .deviation = 4.61},
};
int64_t BlockBytes(const BlockType& t) { return 2 + kBlock * t.bits / 8; }

const BlockType& TypeOf(const RandomModel& m) {
  return *std::find_if(std::begin(kTypes), std::end(kTypes),
                       [&](const BlockType& t) { return absl::string_view(t.name) == m.weights; });
}
std::string Allowed() {
  std::vector<std::string> all;
  for (const RandomShape& s : kShapes) {
    for (const BlockType& t : kTypes) all.push_back(absl::StrCat(kPrefix, s.name, "-", t.name));
  }
  return absl::StrJoin(all, ", ");
}

// Matrices have two dimensions, the vectors of norms one.
std::vector<GgufPlace> Tensors(const RandomModel& m) {
  const RandomShape& s = m.shape;
  const BlockType& type = TypeOf(m);
  std::vector<GgufPlace> all;
  const auto matrix = [&](const std::string& name, int64_t in, int64_t out) {
    all.push_back({name,
                   {static_cast<uint64_t>(in), static_cast<uint64_t>(out)},
                   type.tensor_type,
                   static_cast<uint64_t>(in / kBlock * BlockBytes(type) * out)});
  };
  const auto norm = [&](const std::string& name) {
    all.push_back({name,
                   {static_cast<uint64_t>(s.width)},
                   static_cast<uint32_t>(GgufType::kF32),
                   static_cast<uint64_t>(s.width) * sizeof(float)});
  };
  matrix("token_embd.weight", s.width, s.vocabulary);
  norm("output_norm.weight");
  if (!s.tied) matrix("output.weight", s.width, s.vocabulary);
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string at = absl::StrCat("blk.", i, ".");
    norm(at + "attn_norm.weight");
    matrix(at + "attn_q.weight", s.width, s.heads * s.head);
    matrix(at + "attn_k.weight", s.width, s.kv_heads * s.head);
    matrix(at + "attn_v.weight", s.width, s.kv_heads * s.head);
    matrix(at + "attn_output.weight", s.heads * s.head, s.width);
    norm(at + "ffn_norm.weight");
    matrix(at + "ffn_gate.weight", s.width, s.ffn);
    matrix(at + "ffn_up.weight", s.width, s.ffn);
    matrix(at + "ffn_down.weight", s.ffn, s.width);
  }
  return all;
}

GgufWriter Keys(const RandomModel& m) {
  const RandomShape& s = m.shape;
  GgufWriter w;
  w.Set("general.architecture", std::string("llama"));
  w.Set("general.name", absl::StrCat("random ", s.name));
  w.Set32("general.file_type", TypeOf(m).file_type);
  const auto number = [&](const std::string& key, int64_t value) {
    w.Set32("llama." + key, static_cast<uint32_t>(value));
  };
  number("context_length", kContext);
  number("embedding_length", s.width);
  number("block_count", s.layers);
  number("feed_forward_length", s.ffn);
  number("attention.head_count", s.heads);
  number("attention.head_count_kv", s.kv_heads);
  number("attention.key_length", s.head);
  number("attention.value_length", s.head);
  number("rope.dimension_count", s.head);
  number("vocab_size", s.vocabulary);
  w.Set32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  w.Set32("llama.rope.freq_base", 500000.0f);
  w.Set("tokenizer.ggml.model", std::string("none"));
  return w;
}

absl::Status WriteAll(int fd, const char* data, size_t bytes) {
  while (bytes > 0) {
    const ssize_t n = write(fd, data, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      return absl::UnavailableError(
          absl::StrCat("a random model cannot be written: ", std::strerror(errno)));
    data += n;
    bytes -= static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

// Random bits, the first two bytes of every block replaced by the scale.
void FillBlocks(const BlockType& type, uint16_t scale, const RngKey& key, std::string& blocks) {
  RngKey at = key;
  for (size_t i = 0; i < blocks.size(); i += sizeof(uint64_t)) {
    const uint64_t bits = RandomBits(at);
    std::memcpy(&blocks[i], &bits, std::min(sizeof bits, blocks.size() - i));
    ++at.item;
  }
  const auto step = static_cast<size_t>(BlockBytes(type));
  for (size_t i = 0; i < blocks.size(); i += step) std::memcpy(&blocks[i], &scale, sizeof scale);
}
std::string Ones(uint64_t count) {
  const std::vector<float> ones(count, 1.0f);
  return {reinterpret_cast<const char*>(ones.data()), ones.size() * sizeof(float)};
}
}  // namespace

bool IsRandomModel(absl::string_view model) { return model.substr(0, kPrefix.size()) == kPrefix; }

absl::StatusOr<RandomModel> ParseRandomModel(absl::string_view model) {
  const absl::string_view name = absl::StripPrefix(model, kPrefix);
  for (const RandomShape& s : kShapes) {
    for (const BlockType& t : kTypes) {
      if (IsRandomModel(model) && name == absl::StrCat(s.name, "-", t.name))
        return RandomModel{.shape = s, .weights = t.name};
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no random model '", model, "'; allowed: ", Allowed()));
}

std::string Describe(const RandomModel& m) {
  const RandomShape& s = m.shape;
  return absl::StrFormat(
      "random weights of type %s in the shape of %s: %d layers of width %d, %d heads of %d, %d KV "
      "heads, FFN %d, %d tokens",
      m.weights, s.of, s.layers, s.width, s.heads, s.head, s.kv_heads, s.ffn, s.vocabulary);
}

int64_t FileBytes(const RandomModel& m) {
  const std::vector<GgufPlace> tensors = Tensors(m);
  const GgufWriter keys = Keys(m);
  const auto unit = static_cast<int64_t>(keys.alignment());
  auto bytes = static_cast<int64_t>(keys.Head(tensors).size());
  for (const GgufPlace& t : tensors)
    bytes += (static_cast<int64_t>(t.bytes) + unit - 1) / unit * unit;
  return bytes;
}

absl::Status WriteRandomModel(const RandomModel& m, uint64_t seed, int fd,
                              const std::function<void(int64_t)>& progress) {
  const std::vector<GgufPlace> tensors = Tensors(m);
  const GgufWriter keys = Keys(m);
  const std::string head = keys.Head(tensors);
  const BlockType& type = TypeOf(m);
  SLUICE_RETURN_IF_ERROR(WriteAll(fd, head.data(), head.size()));
  auto written = static_cast<int64_t>(head.size());
  const int64_t piece = kPiece / BlockBytes(type) * BlockBytes(type);
  for (size_t t = 0; t < tensors.size(); ++t) {
    const bool norm = tensors[t].shape.size() == 1;
    const auto bytes = static_cast<int64_t>(tensors[t].bytes);
    const double deviation = 1 / std::sqrt(static_cast<double>(tensors[t].shape[0]));
    const uint16_t scale = F32ToF16(static_cast<float>(deviation / type.deviation));
    for (int64_t at = 0; at < bytes; at += piece) {
      std::string data(std::min(piece, bytes - at), '\0');
      const auto first = static_cast<uint64_t>(at);  // no two pieces share a coordinate
      if (norm) {
        data = Ones(tensors[t].shape[0]);
      } else {
        FillBlocks(type, scale, {.seed = seed, .layer = t, .item = first}, data);
      }
      SLUICE_RETURN_IF_ERROR(WriteAll(fd, data.data(), data.size()));
      written += std::ssize(data);
      if (progress) progress(written);
    }
    const std::string fill(
        (keys.alignment() - tensors[t].bytes % keys.alignment()) % keys.alignment(), '\0');
    SLUICE_RETURN_IF_ERROR(WriteAll(fd, fill.data(), fill.size()));
    written += std::ssize(fill);
  }
  return absl::OkStatus();
}

absl::StatusOr<TemporaryFile> TemporaryFile::Create(int64_t bytes, const std::string& what) {
  const char* given = std::getenv("TMPDIR");
  const std::string folder = given != nullptr && *given != 0 ? given : "/tmp";
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(folder, error);
  if (error)
    return absl::InvalidArgumentError(absl::StrCat("a temporary file in ", folder, ": ",
                                                   error.message(),
                                                   "; allowed: a folder that TMPDIR names"));
  constexpr double kMega = 1e6;
  if (space.available < static_cast<uint64_t>(bytes))
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%s takes %.0f MB, and %s has %.0f MB free; TMPDIR names another folder", what,
        static_cast<double>(bytes) / kMega, folder, static_cast<double>(space.available) / kMega));
  std::string name = folder + "/sluice-XXXXXX";
  const int fd = mkstemp(name.data());
  if (fd < 0)
    return absl::UnavailableError(absl::StrCat("a temporary file in ", folder, ": ",
                                               std::strerror(errno),
                                               "; TMPDIR names another folder"));
  unlink(name.c_str());
  return TemporaryFile(fd);
}
TemporaryFile::~TemporaryFile() {
  if (fd_ >= 0) close(fd_);
}
TemporaryFile::TemporaryFile(TemporaryFile&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
std::string TemporaryFile::path() const { return absl::StrCat("/proc/self/fd/", fd_); }
}  // namespace llama
SLUICE_END_NAMESPACE
