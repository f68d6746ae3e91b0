#include "sluice/runtime/weights/gguf_writer.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "sluice/api/dtype.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr size_t kAlign = 32, kBlock = 32;
template <class T>
void Put(std::string& s, T v) {
  s.append(reinterpret_cast<const char*>(&v), sizeof v);
}
void PutText(std::string& s, const std::string& t) {
  Put<uint64_t>(s, t.size());
  s += t;
}
void Pad(std::string& s) { s.resize((s.size() + kAlign - 1) / kAlign * kAlign); }

template <class T>
struct Code;  // type codes of the format
template <>
struct Code<int64_t> {
  static constexpr uint32_t value = 11;
};
template <>
struct Code<double> {
  static constexpr uint32_t value = 12;
};
template <>
struct Code<bool> {
  static constexpr uint32_t value = 7;
};
template <>
struct Code<std::string> {
  static constexpr uint32_t value = 8;
};
template <class T>
void PutScalar(std::string& s, const T& v) {
  if constexpr (std::is_same_v<T, std::string>) {
    PutText(s, v);
  } else {
    Put(s, v);
  }
}
struct PutValue {
  std::string& s;
  template <class T>
  void operator()(const T& v) const {
    Put(s, Code<T>::value);
    PutScalar(s, v);
  }
  template <class T>
  void operator()(const std::vector<T>& v) const {
    Put<uint32_t>(s, 9);
    Put(s, Code<T>::value);
    Put<uint64_t>(s, v.size());
    for (const T& x : v) PutScalar(s, x);
  }
};
std::string Quantise(
    absl::Span<const float> x) {  // Q8_0: a scale in F16 and 32 signed bytes a block
  std::string out;
  for (size_t b = 0; b < x.size(); b += kBlock) {
    float most = 0;
    for (size_t i = 0; i < kBlock; ++i) most = std::max(most, std::abs(x[b + i]));
    const uint16_t scale = F32ToF16(most / 127.0f);
    const float back = F16ToF32(scale);
    Put(out, scale);
    for (size_t i = 0; i < kBlock; ++i)
      Put(out, static_cast<int8_t>(
                   back > 0 ? std::clamp(std::round(x[b + i] / back), -127.0f, 127.0f) : 0.0f));
  }
  return out;
}
}  // namespace

absl::Status GgufWriter::Add(const std::string& name, absl::Span<const uint64_t> shape,
                             absl::Span<const float> data, GgufType type) {
  uint64_t n = 1;
  for (uint64_t s : shape) n *= s;
  if (shape.empty() || n != data.size())
    return absl::InvalidArgumentError(
        absl::StrCat("tensor '", name, "' has ", data.size(), " elements, its shape holds ", n));
  Stored t{name, type, {shape.begin(), shape.end()}, {}};
  if (type == GgufType::kQ8_0) {
    if (shape[0] % kBlock != 0)
      return absl::InvalidArgumentError(absl::StrCat("tensor '", name, "' has rows of ", shape[0],
                                                     "; Q8_0 needs a multiple of ", kBlock));
    t.bytes = Quantise(data);
  } else if (type == GgufType::kF16) {
    for (float x : data) Put(t.bytes, F32ToF16(x));
  } else {
    t.bytes.assign(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(float));
  }
  tensors_.push_back(std::move(t));
  return absl::OkStatus();
}
void GgufWriter::Copy(const GgufTensor& t) {
  tensors_.push_back(
      {t.name, t.type, t.shape, std::string(reinterpret_cast<const char*>(t.data), t.bytes)});
}
std::string GgufWriter::Bytes() const {
  std::string s = "GGUF";
  Put<uint32_t>(s, 3);
  Put<uint64_t>(s, tensors_.size());
  Put<uint64_t>(s, values_.size());
  for (const auto& [key, value] : values_) {
    PutText(s, key);
    std::visit(PutValue{s}, value);
  }
  uint64_t offset = 0;
  for (const Stored& t : tensors_) {
    PutText(s, t.name);
    Put<uint32_t>(s, static_cast<uint32_t>(t.shape.size()));
    for (uint64_t d : t.shape) Put<uint64_t>(s, d);
    Put<uint32_t>(s, static_cast<uint32_t>(t.type));
    Put<uint64_t>(s, offset);
    offset += (t.bytes.size() + kAlign - 1) / kAlign * kAlign;
  }
  Pad(s);
  for (const Stored& t : tensors_) {
    s += t.bytes;
    Pad(s);
  }
  return s;
}
absl::Status GgufWriter::Write(const std::string& path) const {
  const std::string bytes = Bytes();
  std::ofstream f(path, std::ios::binary);
  f.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  f.close();
  return f ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("cannot write '", path, "'"));
}
SLUICE_END_NAMESPACE
