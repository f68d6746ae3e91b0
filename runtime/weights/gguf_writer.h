#ifndef SLUICE_RUNTIME_WEIGHTS_GGUF_WRITER_H_
#define SLUICE_RUNTIME_WEIGHTS_GGUF_WRITER_H_
// Writes GGUF version 3, little-endian: what a calibration or a pruning leaves behind, read again
// by gguf.h.
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
// The bytes of `data` in the type of `t`, which has as many elements. A Q8_0 block whose numbers
// its old scale still says exactly keeps that scale, so that weights which only lost others keep
// every bit. InvalidArgument for a number that is not finite, or too large for the type.
absl::StatusOr<std::string> GgufEncodeLike(const GgufTensor& t, absl::Span<const float> data);

// A tensor whose data is written elsewhere.
struct GgufPlace {
  std::string name;
  std::vector<uint64_t> shape;  // fastest dimension first
  uint32_t type = 0;            // the format's number, also of types that are not read here
  uint64_t bytes = 0;
};

class GgufWriter {
 public:
  // Keys and tensors are written in the order given.
  void Set(const std::string& key, const GgufValue& value);
  // In 32 bits, which is what other readers want of most numbers.
  void Set32(const std::string& key, uint32_t value);
  void Set32(const std::string& key, float value);
  // All of a file's keys in its order, every byte as it is stored, types of numbers included; its
  // general.alignment becomes this file's.
  void CopyValues(const Gguf& file);
  // Another value of an integer that is there, in the type that it has. NotFound, InvalidArgument
  // (no integer), OutOfRange (too large for the type).
  absl::Status Replace(const std::string& key, int64_t value);
  // A new key after the others, an integer in the type that `like` has. AlreadyExists where `key`
  // is there, else errors as Replace's; nothing is added then.
  absl::Status SetLike(const std::string& key, const std::string& like, int64_t value);
  // `shape` fastest dimension first; `data` holds its product. kQ8_0 needs rows of whole blocks of
  // 32: InvalidArgument.
  absl::Status Add(const std::string& name, absl::Span<const uint64_t> shape,
                   absl::Span<const float> data, GgufType type = GgufType::kF32);
  // The tensor as it is stored, unchanged.
  void Copy(const GgufTensor& t);
  // Whole or not at all: beside and renamed.
  absl::Status Write(const std::string& path) const;
  std::string Bytes() const;
  // What stands before the data of these tensors, for files too large to be held: they follow in
  // this order, each filled up to a multiple of alignment().
  std::string Head(absl::Span<const GgufPlace> tensors) const;
  size_t alignment() const { return alignment_; }

 private:
  struct Stored {
    std::string name;
    GgufType type;
    std::vector<uint64_t> shape;
    std::string bytes;
  };
  void Align(const std::string& key, const GgufValue& value);

  using Values = std::vector<std::pair<std::string, std::string>>;
  Values::iterator Find(const std::string& key);  // values_.end(): it is not there

  Values values_;  // key; type and content, as stored
  std::vector<Stored> tensors_;
  size_t alignment_ = 32;  // of the tensors' data
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_WEIGHTS_GGUF_WRITER_H_
