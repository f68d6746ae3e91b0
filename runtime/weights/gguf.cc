#include "sluice/runtime/weights/gguf.h"

#include <sys/mman.h>

#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "sluice/api/check.h"
#include "sluice/api/dtype.h"
#include "sluice/runtime/base/regular_file.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr uint64_t kQ8Block = 32, kQ8Bytes = 34;

absl::Status Corrupt(const std::string& what) {
  return absl::DataLossError(absl::StrCat("GGUF: ", what));
}

// A cursor that never reads past the end.
class Reader {
 public:
  explicit Reader(absl::Span<const std::byte> b) : b_(b) {}
  size_t at() const { return at_; }
  absl::Span<const std::byte> since(size_t begin) const { return b_.subspan(begin, at_ - begin); }
  uint64_t left() const { return b_.size() - at_; }
  template <class T>
  absl::Status Read(T* v, const char* what) {
    if (left() < sizeof(T))
      return Corrupt(absl::StrCat("the file ends at byte ", b_.size(), " inside ", what));
    std::memcpy(v, b_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return absl::OkStatus();
  }
  absl::Status ReadText(std::string* s, const char* what) {
    uint64_t n = 0;
    SLUICE_RETURN_IF_ERROR(Read(&n, what));
    if (n > left())
      return Corrupt(absl::StrCat(what, " of ", n, " bytes, but only ", left(), " are left"));
    s->assign(reinterpret_cast<const char*>(b_.data() + at_), n);
    at_ += n;
    return absl::OkStatus();
  }

 private:
  absl::Span<const std::byte> b_;
  size_t at_ = 0;
};

enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kFloat,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kDouble
};
uint64_t ValueBytes(uint32_t t) {
  switch (t) {
    case kU8:
    case kI8:
    case kBool:
      return 1;
    case kU16:
    case kI16:
      return 2;
    case kU32:
    case kI32:
    case kFloat:
      return 4;
    case kString:
    case kU64:
    case kI64:
    case kDouble:
      return 8;  // a string is at least its length word
    default:
      return 0;
  }
}
template <class T>
absl::Status ReadAs(Reader& r, int64_t* out) {
  T v{};
  SLUICE_RETURN_IF_ERROR(r.Read(&v, "a metadata value"));
  if constexpr (std::is_same_v<T, uint64_t>) {
    if (v > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      return Corrupt(absl::StrCat("the integer ", v, " does not fit 63 bits"));
  }
  *out = static_cast<int64_t>(v);
  return absl::OkStatus();
}
absl::Status ReadInt(Reader& r, uint32_t t, int64_t* out) {
  switch (t) {
    case kU8:
      return ReadAs<uint8_t>(r, out);
    case kI8:
      return ReadAs<int8_t>(r, out);
    case kU16:
      return ReadAs<uint16_t>(r, out);
    case kI16:
      return ReadAs<int16_t>(r, out);
    case kU32:
      return ReadAs<uint32_t>(r, out);
    case kI32:
      return ReadAs<int32_t>(r, out);
    case kU64:
      return ReadAs<uint64_t>(r, out);
    default:
      return ReadAs<int64_t>(r, out);
  }
}
absl::Status ReadReal(Reader& r, uint32_t t, double* out) {
  if (t == kDouble) return r.Read(out, "a metadata value");
  float f = 0;
  SLUICE_RETURN_IF_ERROR(r.Read(&f, "a metadata value"));
  *out = f;
  return absl::OkStatus();
}
absl::Status ReadValue(Reader& r, uint32_t t, const std::string& key, GgufValue* out) {
  switch (t) {
    case kU8:
    case kI8:
    case kU16:
    case kI16:
    case kU32:
    case kI32:
    case kU64:
    case kI64: {
      int64_t v = 0;
      SLUICE_RETURN_IF_ERROR(ReadInt(r, t, &v));
      *out = v;
      return absl::OkStatus();
    }
    case kFloat:
    case kDouble: {
      double v = 0;
      SLUICE_RETURN_IF_ERROR(ReadReal(r, t, &v));
      *out = v;
      return absl::OkStatus();
    }
    case kBool: {
      uint8_t v = 0;
      SLUICE_RETURN_IF_ERROR(r.Read(&v, "a metadata value"));
      *out = v != 0;
      return absl::OkStatus();
    }
    case kString: {
      std::string s;
      SLUICE_RETURN_IF_ERROR(r.ReadText(&s, "a text value"));
      *out = std::move(s);
      return absl::OkStatus();
    }
    case kArray: {
      uint32_t et = 0;
      uint64_t n = 0;
      SLUICE_RETURN_IF_ERROR(r.Read(&et, "an array header"));
      SLUICE_RETURN_IF_ERROR(r.Read(&n, "an array header"));
      const uint64_t each = ValueBytes(et);
      if (each == 0)
        return Corrupt(absl::StrCat("'", key, "' is an array of type ", et,
                                    "; known scalar types are 0 to 8 and 10 to 12"));
      if (n > r.left() / each)
        return Corrupt(absl::StrCat("'", key, "' claims ", n, " elements, but only ", r.left(),
                                    " bytes are left"));
      if (et == kString) {
        std::vector<std::string> v(n);
        for (std::string& s : v) SLUICE_RETURN_IF_ERROR(r.ReadText(&s, "a text in an array"));
        *out = std::move(v);
      } else if (et == kFloat || et == kDouble) {
        std::vector<double> v(n);
        for (double& x : v) SLUICE_RETURN_IF_ERROR(ReadReal(r, et, &x));
        *out = std::move(v);
      } else {
        std::vector<int64_t> v(n);
        for (int64_t& x : v)
          SLUICE_RETURN_IF_ERROR(et == kBool ? ReadAs<uint8_t>(r, &x) : ReadInt(r, et, &x));
        *out = std::move(v);
      }
      return absl::OkStatus();
    }
    default:
      return Corrupt(absl::StrCat("'", key, "' has value type ", t, "; known are 0 to 12"));
  }
}

struct Header {
  uint64_t tensors = 0, values = 0;
};
absl::StatusOr<Header> ReadHeader(Reader& r) {
  char magic[4] = {};
  SLUICE_RETURN_IF_ERROR(r.Read(&magic, "the header"));
  if (std::memcmp(magic, "GGUF", 4) != 0)
    return absl::InvalidArgumentError("not a GGUF file: it does not start with 'GGUF'");
  uint32_t version = 0;
  SLUICE_RETURN_IF_ERROR(r.Read(&version, "the header"));
  if (version < 2 || version > 3)
    return absl::UnimplementedError(
        absl::StrCat("GGUF version ", version, "; versions 2 and 3 are supported"));
  Header h;
  SLUICE_RETURN_IF_ERROR(r.Read(&h.tensors, "the header"));
  SLUICE_RETURN_IF_ERROR(r.Read(&h.values, "the header"));
  return h;
}
// Things of at least `each` bytes that the header promises must fit into what is left.
absl::Status CheckClaim(const Reader& r, uint64_t n, uint64_t each, const char* what) {
  if (n <= r.left() / each) return absl::OkStatus();
  return Corrupt(
      absl::StrCat("the header claims ", n, " ", what, ", but only ", r.left(), " bytes are left"));
}
absl::Status ReadValues(Reader& r, uint64_t n, std::map<std::string, GgufValue>& values,
                        std::vector<GgufEntry>& entries) {
  SLUICE_RETURN_IF_ERROR(CheckClaim(r, n, 13, "metadata values"));
  for (uint64_t i = 0; i < n; ++i) {
    std::string key;
    uint32_t type = 0;
    GgufValue value;
    SLUICE_RETURN_IF_ERROR(r.ReadText(&key, "a metadata key"));
    const size_t begin = r.at();
    SLUICE_RETURN_IF_ERROR(r.Read(&type, "a metadata type"));
    SLUICE_RETURN_IF_ERROR(ReadValue(r, type, key, &value));
    entries.push_back({key, r.since(begin)});
    if (!values.emplace(key, std::move(value)).second)
      return Corrupt(absl::StrCat("the key '", key, "' appears twice"));
  }
  return absl::OkStatus();
}
// Of the tensors' data.
absl::StatusOr<uint64_t> Alignment(const Gguf& g) {
  if (!g.Has("general.alignment")) return 32;
  SLUICE_ASSIGN_OR_RETURN(const int64_t a, g.Int("general.alignment"));
  if (a <= 0 || a > (1 << 20) || (a & (a - 1)) != 0)
    return Corrupt(absl::StrCat("general.alignment is ", a, ", must be a power of two up to 2^20"));
  return static_cast<uint64_t>(a);
}

struct PlacedTensor {
  GgufTensor tensor;    // without its data
  uint64_t offset = 0;  // of its data, from where all data starts
};
absl::Status ReadShape(Reader& r, GgufTensor& t) {
  uint32_t dims = 0;
  SLUICE_RETURN_IF_ERROR(r.Read(&dims, "a tensor header"));
  if (dims == 0 || dims > 4)
    return Corrupt(
        absl::StrCat("tensor '", t.name, "' has ", dims, " dimensions, allowed are 1 to 4"));
  t.elements = 1;
  for (uint32_t d = 0; d < dims; ++d) {
    uint64_t n = 0;
    SLUICE_RETURN_IF_ERROR(r.Read(&n, "a tensor shape"));
    if (n == 0 || n > (uint64_t{1} << 40) / t.elements)
      return Corrupt(absl::StrCat("tensor '", t.name, "' has dimension ", n));
    t.elements *= n;
    t.shape.push_back(n);
  }
  return absl::OkStatus();
}
uint64_t BytesOf(const GgufTensor& t) {
  switch (t.type) {
    case GgufType::kF32:
      return t.elements * 4;
    case GgufType::kF16:
      return t.elements * 2;
    case GgufType::kQ8_0:
      return t.elements / kQ8Block * kQ8Bytes;
  }
  return 0;
}
absl::StatusOr<PlacedTensor> ReadTensor(Reader& r) {
  PlacedTensor placed;
  GgufTensor& t = placed.tensor;
  uint32_t type = 0;
  SLUICE_RETURN_IF_ERROR(r.ReadText(&t.name, "a tensor name"));
  SLUICE_RETURN_IF_ERROR(ReadShape(r, t));
  SLUICE_RETURN_IF_ERROR(r.Read(&type, "a tensor header"));
  SLUICE_RETURN_IF_ERROR(r.Read(&placed.offset, "a tensor header"));
  if (type != 0 && type != 1 && type != 8)
    return absl::UnimplementedError(absl::StrCat("GGUF: tensor '", t.name, "' has type ", type,
                                                 "; F32 (0), F16 (1) and Q8_0 (8) are supported"));
  t.type = static_cast<GgufType>(type);
  if (t.type == GgufType::kQ8_0 && t.shape[0] % kQ8Block != 0)
    return Corrupt(absl::StrCat("Q8_0 tensor '", t.name, "' has rows of ", t.shape[0],
                                ", not a multiple of 32"));
  t.bytes = BytesOf(t);
  return placed;
}
// Where the tensor's data is in a file of `bytes`, all data starting at `start`.
absl::StatusOr<const std::byte*> DataOf(const PlacedTensor& placed,
                                        absl::Span<const std::byte> bytes, uint64_t start,
                                        uint64_t alignment) {
  const auto& [t, offset] = placed;
  if (offset % alignment != 0)
    return Corrupt(absl::StrCat("tensor '", t.name, "' starts at offset ", offset,
                                ", not a multiple of ", alignment));
  if (start > bytes.size() || offset > bytes.size() - start ||
      t.bytes > bytes.size() - start - offset) {
    return Corrupt(absl::StrCat("tensor '", t.name, "' needs ", t.bytes, " bytes at offset ",
                                offset, " of the data, but the file has ", bytes.size(),
                                " bytes: it is truncated"));
  }
  return bytes.data() + start + offset;
}
}  // namespace

const char* GgufTypeName(GgufType t) {
  return t == GgufType::kF32 ? "F32" : t == GgufType::kF16 ? "F16" : "Q8_0";
}

absl::StatusOr<Gguf> Gguf::Parse(absl::Span<const std::byte> bytes) {
  Reader r(bytes);
  Gguf g;
  SLUICE_ASSIGN_OR_RETURN(const Header header, ReadHeader(r));
  SLUICE_RETURN_IF_ERROR(ReadValues(r, header.values, g.values_, g.entries_));
  SLUICE_ASSIGN_OR_RETURN(const uint64_t alignment, Alignment(g));

  SLUICE_RETURN_IF_ERROR(CheckClaim(r, header.tensors, 24, "tensors"));
  std::vector<PlacedTensor> found;
  for (uint64_t i = 0; i < header.tensors; ++i) {
    SLUICE_ASSIGN_OR_RETURN(PlacedTensor placed, ReadTensor(r));
    found.push_back(std::move(placed));
  }

  const uint64_t start = (r.at() + alignment - 1) / alignment * alignment;
  for (PlacedTensor& placed : found) {
    GgufTensor& t = placed.tensor;
    SLUICE_ASSIGN_OR_RETURN(t.data, DataOf(placed, bytes, start, alignment));
    const std::string name = t.name;
    g.tensor_names_.push_back(name);
    if (!g.tensors_.emplace(name, std::move(t)).second)
      return Corrupt(absl::StrCat("the tensor '", name, "' appears twice"));
  }
  return g;
}

absl::StatusOr<Gguf> Gguf::Open(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const RegularFile file, RegularFile::Open(path));
  const size_t size = static_cast<size_t>(file.size());
  if (size == 0) return absl::DataLossError(absl::StrCat(path, ": the file is empty"));
  void* p = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd(), 0);
  if (p == MAP_FAILED)
    return absl::InternalError(absl::StrCat(path, ": cannot map: ", std::strerror(errno)));
  std::shared_ptr<const void> mapping(
      p, [size](const void* q) { ::munmap(const_cast<void*>(q), size); });
  absl::StatusOr<Gguf> g = Parse({static_cast<const std::byte*>(p), size});
  if (!g.ok())
    return absl::Status(g.status().code(), absl::StrCat(path, ": ", g.status().message()));
  g->mapping_ = std::move(mapping);
  return g;
}

template <class T>
absl::StatusOr<const T*> Gguf::Value(const std::string& key, const char* wanted) const {
  const auto it = values_.find(key);
  if (it == values_.end()) return absl::NotFoundError(absl::StrCat("GGUF: no key '", key, "'"));
  const T* v = std::get_if<T>(&it->second);
  if (v == nullptr)
    return absl::InvalidArgumentError(absl::StrCat("GGUF: '", key, "' is not ", wanted));
  return v;
}
absl::StatusOr<int64_t> Gguf::Int(const std::string& key) const {
  SLUICE_ASSIGN_OR_RETURN(const int64_t* v, Value<int64_t>(key, "an integer"));
  return *v;
}
absl::StatusOr<double> Gguf::Real(const std::string& key) const {
  const auto it = values_.find(key);
  if (it != values_.end() && std::holds_alternative<int64_t>(it->second))
    return static_cast<double>(std::get<int64_t>(it->second));
  SLUICE_ASSIGN_OR_RETURN(const double* v, Value<double>(key, "a number"));
  return *v;
}
absl::StatusOr<std::string> Gguf::Text(const std::string& key) const {
  SLUICE_ASSIGN_OR_RETURN(const std::string* v, Value<std::string>(key, "a text"));
  return *v;
}
absl::StatusOr<const std::vector<std::string>*> Gguf::Texts(const std::string& key) const {
  return Value<std::vector<std::string>>(key, "an array of texts");
}
absl::StatusOr<const GgufTensor*> Gguf::Tensor(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end())
    return absl::NotFoundError(absl::StrCat("GGUF: no tensor '", name, "'"));
  return &it->second;
}
absl::StatusOr<std::vector<float>> Gguf::ReadF32(const std::string& name,
                                                 absl::Span<const uint64_t> shape) const {
  SLUICE_ASSIGN_OR_RETURN(const GgufTensor* t, Tensor(name));
  if (absl::MakeConstSpan(t->shape) != shape) {
    return absl::InvalidArgumentError(absl::StrCat("GGUF: tensor '", name, "' is [",
                                                   absl::StrJoin(t->shape, ", "), "], wanted [",
                                                   absl::StrJoin(shape, ", "), "]"));
  }
  return GgufDecode(*t);
}
std::vector<float> GgufDecode(const GgufTensor& t) {
  std::vector<float> out(t.elements);
  if (t.type == GgufType::kF32) {
    std::memcpy(out.data(), t.data, t.bytes);
  } else if (t.type == GgufType::kF16) {
    for (uint64_t i = 0; i < t.elements; ++i) {
      uint16_t h;
      std::memcpy(&h, t.data + 2 * i, 2);
      out[i] = F16ToF32(h);
    }
  } else {
    for (uint64_t b = 0; b < t.elements / kQ8Block; ++b) {
      const std::byte* p = t.data + b * kQ8Bytes;
      uint16_t h;
      std::memcpy(&h, p, 2);
      const float scale = F16ToF32(h);
      for (uint64_t i = 0; i < kQ8Block; ++i)
        out[b * kQ8Block + i] = scale * static_cast<float>(static_cast<int8_t>(p[2 + i]));
    }
  }
  return out;
}
SLUICE_END_NAMESPACE
