#include "sluice/runtime/weights/gguf_writer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "sluice/api/dtype.h"
#include "sluice/runtime/base/whole_file.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr size_t kBlock = 32;
constexpr size_t kBlockBytes = 34;
template <class T>
void Put(std::string& s, T v) {
  s.append(reinterpret_cast<const char*>(&v), sizeof v);
}
void PutText(std::string& s, const std::string& t) {
  Put<uint64_t>(s, t.size());
  s += t;
}
size_t Padded(size_t n, size_t alignment) { return (n + alignment - 1) / alignment * alignment; }
void Pad(std::string& s, size_t alignment) { s.resize(Padded(s.size(), alignment)); }

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
// Q8_0: a scale in F16 and 32 signed bytes a block.
void PutBlock(std::string& out, uint16_t scale, const float* x) {
  const float back = F16ToF32(scale);
  Put(out, scale);
  for (size_t i = 0; i < kBlock; ++i) {
    const float whole = back > 0 ? std::round(x[i] / back) : 0.0f;
    Put(out, static_cast<int8_t>(std::clamp(whole, -127.0f, 127.0f)));
  }
}
uint16_t ScaleOf(const float* x) {
  float most = 0;
  for (size_t i = 0; i < kBlock; ++i) most = std::max(most, std::abs(x[i]));
  return F32ToF16(most / 127.0f);
}
std::string Quantise(absl::Span<const float> x) {
  std::string out;
  for (size_t b = 0; b < x.size(); b += kBlock) PutBlock(out, ScaleOf(&x[b]), &x[b]);
  return out;
}
// Whether the block `stored` would say x exactly with some of its bytes turned to 0.
bool OnlyLost(const std::byte* stored, const float* x) {
  uint16_t scale = 0;
  std::memcpy(&scale, stored, sizeof scale);
  for (size_t i = 0; i < kBlock; ++i) {
    const float was = F16ToF32(scale) * static_cast<float>(static_cast<int8_t>(stored[2 + i]));
    if (x[i] != was && x[i] != 0) return false;
  }
  return true;
}
// The block with 0 where x is 0.
void PutLost(std::string& out, const std::byte* stored, const float* x) {
  out.append(reinterpret_cast<const char*>(stored), 2);
  for (size_t i = 0; i < kBlock; ++i)
    Put(out, x[i] == 0 ? int8_t{0} : static_cast<int8_t>(stored[2 + i]));
}
float LargestOf(GgufType type) {
  if (type == GgufType::kF32) return std::numeric_limits<float>::max();
  constexpr float kMostF16 = 65504;
  return type == GgufType::kF16 ? kMostF16 : 127 * kMostF16;
}

template <class T>
absl::Status ReplaceAs(const std::string& key, int64_t value, std::string& stored) {
  const bool fits =
      value >= 0
          ? static_cast<uint64_t>(value) <= static_cast<uint64_t>(std::numeric_limits<T>::max())
          : std::is_signed_v<T> && value >= static_cast<int64_t>(std::numeric_limits<T>::min());
  if (!fits)
    return absl::OutOfRangeError(
        absl::StrCat("'", key, "' of ", 8 * sizeof(T), " bits does not hold ", value));
  stored.resize(sizeof(uint32_t));
  Put(stored, static_cast<T>(value));
  return absl::OkStatus();
}
}  // namespace

absl::StatusOr<std::string> GgufEncodeLike(const GgufTensor& t, absl::Span<const float> data) {
  if (data.size() != t.elements)
    return absl::InvalidArgumentError(absl::StrCat("tensor '", t.name, "' holds ", t.elements,
                                                   " elements; ", data.size(), " were given"));
  for (size_t i = 0; i < data.size(); ++i) {
    if (std::abs(data[i]) <= LargestOf(t.type)) continue;
    return absl::InvalidArgumentError(absl::StrCat("element ", i, " of tensor '", t.name, "' is ",
                                                   data[i], "; allowed in ", GgufTypeName(t.type),
                                                   " are numbers up to ", LargestOf(t.type)));
  }
  std::string out;
  if (t.type == GgufType::kF32) {
    out.assign(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(float));
  } else if (t.type == GgufType::kF16) {
    for (float x : data) Put(out, F32ToF16(x));
  } else {
    for (size_t b = 0; b < data.size() / kBlock; ++b) {
      const std::byte* stored = t.data + b * kBlockBytes;
      const float* x = &data[b * kBlock];
      if (OnlyLost(stored, x)) {
        PutLost(out, stored, x);
      } else {
        PutBlock(out, ScaleOf(x), x);
      }
    }
  }
  return out;
}

void GgufWriter::Align(const std::string& key, const GgufValue& value) {
  const auto* n = std::get_if<int64_t>(&value);
  if (key == "general.alignment" && n != nullptr && *n > 0) alignment_ = static_cast<size_t>(*n);
}
void GgufWriter::Set(const std::string& key, const GgufValue& value) {
  std::string& stored = values_.emplace_back(key, std::string()).second;
  std::visit(PutValue{stored}, value);
  Align(key, value);
}
void GgufWriter::Set32(const std::string& key, uint32_t value) {
  std::string& stored = values_.emplace_back(key, std::string()).second;
  Put<uint32_t>(stored, 4);
  Put(stored, value);
  Align(key, GgufValue(int64_t{value}));
}
void GgufWriter::Set32(const std::string& key, float value) {
  std::string& stored = values_.emplace_back(key, std::string()).second;
  Put<uint32_t>(stored, 6);
  Put(stored, value);
}
void GgufWriter::CopyValues(const Gguf& file) {
  for (const GgufEntry& e : file.entries()) {
    values_.emplace_back(
        e.key, std::string(reinterpret_cast<const char*>(e.value.data()), e.value.size()));
    Align(e.key, file.values().at(e.key));
  }
}
absl::Status GgufWriter::SetLike(const std::string& key, const std::string& like, int64_t value) {
  if (Find(key) != values_.end())
    return absl::AlreadyExistsError(
        absl::StrCat("key '", key, "' is there already; Replace gives it another value"));
  const auto at = Find(like);
  if (at == values_.end())
    return absl::NotFoundError(absl::StrCat("no key '", like, "' whose type to take"));
  values_.emplace_back(key, std::string(at->second));
  const absl::Status status = Replace(key, value);
  if (!status.ok()) values_.pop_back();
  return status;
}
GgufWriter::Values::iterator GgufWriter::Find(const std::string& key) {
  return std::find_if(values_.begin(), values_.end(),
                      [&](const auto& v) { return v.first == key; });
}
absl::Status GgufWriter::Replace(const std::string& key, int64_t value) {
  const auto at = Find(key);
  if (at == values_.end())
    return absl::NotFoundError(absl::StrCat("no key '", key, "' to replace"));
  uint32_t type = 0;
  std::memcpy(&type, at->second.data(), sizeof type);
  switch (type) {
    case 0:
      return ReplaceAs<uint8_t>(key, value, at->second);
    case 1:
      return ReplaceAs<int8_t>(key, value, at->second);
    case 2:
      return ReplaceAs<uint16_t>(key, value, at->second);
    case 3:
      return ReplaceAs<int16_t>(key, value, at->second);
    case 4:
      return ReplaceAs<uint32_t>(key, value, at->second);
    case 5:
      return ReplaceAs<int32_t>(key, value, at->second);
    case 10:
      return ReplaceAs<uint64_t>(key, value, at->second);
    case 11:
      return ReplaceAs<int64_t>(key, value, at->second);
    default:
      return absl::InvalidArgumentError(absl::StrCat("'", key, "' is no integer"));
  }
}
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
std::string GgufWriter::Head(absl::Span<const GgufPlace> tensors) const {
  std::string s = "GGUF";
  Put<uint32_t>(s, 3);
  Put<uint64_t>(s, tensors.size());
  Put<uint64_t>(s, values_.size());
  for (const auto& [key, value] : values_) {
    PutText(s, key);
    s += value;
  }
  uint64_t offset = 0;
  for (const GgufPlace& t : tensors) {
    PutText(s, t.name);
    Put<uint32_t>(s, static_cast<uint32_t>(t.shape.size()));
    for (uint64_t d : t.shape) Put<uint64_t>(s, d);
    Put<uint32_t>(s, t.type);
    Put<uint64_t>(s, offset);
    offset += Padded(t.bytes, alignment_);
  }
  Pad(s, alignment_);
  return s;
}
std::string GgufWriter::Bytes() const {
  std::vector<GgufPlace> places;
  places.reserve(tensors_.size());
  for (const Stored& t : tensors_)
    places.push_back({t.name, t.shape, static_cast<uint32_t>(t.type), t.bytes.size()});
  std::string s = Head(places);
  for (const Stored& t : tensors_) {
    s += t.bytes;
    Pad(s, alignment_);
  }
  return s;
}
absl::Status GgufWriter::Write(const std::string& path) const {
  return WriteWholeFile(path, Bytes());
}
SLUICE_END_NAMESPACE
