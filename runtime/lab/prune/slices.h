#ifndef SLUICE_RUNTIME_LAB_PRUNE_SLICES_H_
#define SLUICE_RUNTIME_LAB_PRUNE_SLICES_H_
// Parts of a file's tensor, as they are stored.
#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// Adds the tensor with these of its last dimension's slices only (rows of a matrix), which are
// there and hold whole blocks.
inline void AddSlices(const GgufTensor& t, absl::Span<const int64_t> slices, GgufWriter& out) {
  const uint64_t all = t.shape.back();
  const uint64_t each = t.bytes / all;
  std::string bytes;
  for (int64_t s : slices)
    bytes.append(reinterpret_cast<const char*>(t.data) + static_cast<uint64_t>(s) * each, each);
  GgufTensor cut = t;
  cut.shape.back() = slices.size();
  cut.elements = t.elements / all * slices.size();
  cut.bytes = bytes.size();
  cut.data = reinterpret_cast<const std::byte*>(bytes.data());
  out.Copy(cut);
}
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_SLICES_H_
