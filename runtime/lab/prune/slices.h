#ifndef SLUICE_RUNTIME_LAB_PRUNE_SLICES_H_
#define SLUICE_RUNTIME_LAB_PRUNE_SLICES_H_
// Parts of a file's tensor, as they are stored.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/weight_pruner.h"
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

// Adds the matrix with these of its columns only, in the type that it has.
inline absl::Status AddColumns(const GgufTensor& t, absl::Span<const int64_t> columns,
                               GgufWriter& out) {
  const std::vector<float> all = GgufDecode(t);
  std::vector<float> cut;
  for (uint64_t r = 0; r < t.shape[1]; ++r) {
    for (int64_t c : columns) cut.push_back(all[r * t.shape[0] + static_cast<uint64_t>(c)]);
  }
  const uint64_t shape[] = {columns.size(), t.shape[1]};
  return out.Add(t.name, shape, cut, t.type);
}

// The columns that the mask of `name` keeps, all weights of each: InvalidArgument else.
inline absl::StatusOr<std::vector<int64_t>> KeptColumns(const std::string& name, const Mask& mask) {
  std::vector<int64_t> kept;
  for (int64_t c = 0; c < mask.cols(); ++c) {
    int64_t rows = 0;
    for (int64_t r = 0; r < mask.rows(); ++r) rows += mask.kept(r, c);
    if (rows != 0 && rows != mask.rows())
      return absl::InvalidArgumentError(absl::StrCat("the mask of ", name, " keeps ", rows, " of ",
                                                     mask.rows(), " weights of column ", c,
                                                     "; allowed: all or none"));
    if (rows > 0) kept.push_back(c);
  }
  return kept;
}
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_SLICES_H_
