#ifndef SLUICE_RUNTIME_WEIGHTS_GGUF_WRITER_H_
#define SLUICE_RUNTIME_WEIGHTS_GGUF_WRITER_H_
// Writes GGUF version 3, little-endian: what a calibration or a pruning leaves behind, read again
// by gguf.h.
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
class GgufWriter {
 public:
  // Keys and tensors are written in the order given.
  void Set(std::string key, GgufValue value) {
    values_.emplace_back(std::move(key), std::move(value));
  }
  // `shape` fastest dimension first; `data` holds its product. kQ8_0 needs rows of whole blocks of
  // 32: InvalidArgument.
  absl::Status Add(const std::string& name, absl::Span<const uint64_t> shape,
                   absl::Span<const float> data, GgufType type = GgufType::kF32);
  // The tensor as it is stored, unchanged.
  void Copy(const GgufTensor& t);
  absl::Status Write(const std::string& path) const;
  std::string Bytes() const;

 private:
  struct Stored {
    std::string name;
    GgufType type;
    std::vector<uint64_t> shape;
    std::string bytes;
  };
  std::vector<std::pair<std::string, GgufValue>> values_;
  std::vector<Stored> tensors_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_WEIGHTS_GGUF_WRITER_H_
