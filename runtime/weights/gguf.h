#ifndef SLUICE_RUNTIME_WEIGHTS_GGUF_H_
#define SLUICE_RUNTIME_WEIGHTS_GGUF_H_
// Reader of GGUF versions 2 and 3, little-endian: metadata and F32, F16 and Q8_0 tensors. Every
// size is checked against the file before it is used, so truncated and hostile files give an error
// and no large allocation.
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "sluice/api/version.h"
#include "sluice/api/weight_source.h"

SLUICE_BEGIN_NAMESPACE
enum class GgufType : uint32_t { kF32 = 0, kF16 = 1, kQ8_0 = 8 };
const char* GgufTypeName(GgufType t);

struct GgufTensor {
  std::string name;
  GgufType type = GgufType::kF32;
  std::vector<uint64_t> shape;  // fastest dimension first, as stored
  const std::byte* data = nullptr;
  uint64_t elements = 0, bytes = 0;
};
// Integers widen to int64 (uint64 beyond its range is an error), floats to double.
using GgufValue = std::variant<int64_t, double, bool, std::string, std::vector<int64_t>,
                               std::vector<double>, std::vector<std::string>>;

// A metadata value as it is stored: its type and content, byte for byte.
struct GgufEntry {
  std::string key;
  absl::Span<const std::byte> value;
};

class Gguf final : public WeightSource {
 public:
  // Maps the file; the object keeps the mapping.
  static absl::StatusOr<Gguf> Open(const std::string& path);
  // Reads from memory that outlives the object.
  static absl::StatusOr<Gguf> Parse(absl::Span<const std::byte> bytes);

  bool Has(const std::string& key) const { return values_.count(key) > 0; }
  absl::StatusOr<int64_t> Int(const std::string& key) const override;
  absl::StatusOr<double> Real(const std::string& key) const;  // accepts integers
  absl::StatusOr<std::string> Text(const std::string& key) const;
  absl::StatusOr<const std::vector<std::string>*> Texts(const std::string& key) const;
  absl::StatusOr<const GgufTensor*> Tensor(const std::string& name) const;
  absl::StatusOr<std::vector<float>> ReadF32(const std::string& name,
                                             absl::Span<const uint64_t> shape) const override;
  const std::map<std::string, GgufValue>& values() const { return values_; }
  const std::map<std::string, GgufTensor>& tensors() const { return tensors_; }
  // In the file's order.
  const std::vector<GgufEntry>& entries() const { return entries_; }
  const std::vector<std::string>& tensor_names() const { return tensor_names_; }

 private:
  template <class T>
  absl::StatusOr<const T*> Value(const std::string& key, const char* wanted) const;
  std::shared_ptr<const void> mapping_;
  std::map<std::string, GgufValue> values_;
  std::map<std::string, GgufTensor> tensors_;
  std::vector<GgufEntry> entries_;
  std::vector<std::string> tensor_names_;
};
// The tensor's elements as fp32: exact for every type read here.
std::vector<float> GgufDecode(const GgufTensor& t);
// A GGUF file as a source of weights: what Registry::OpenWeightsWith takes.
inline absl::StatusOr<std::unique_ptr<const WeightSource>> OpenWeights(const std::string& path) {
  auto file = Gguf::Open(path);
  if (!file.ok()) return file.status();
  return std::unique_ptr<const WeightSource>(std::make_unique<Gguf>(*std::move(file)));
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_WEIGHTS_GGUF_H_
