#ifndef SLUICE_RUNTIME_TEXT_TOKEN_FILE_H_
#define SLUICE_RUNTIME_TEXT_TOKEN_FILE_H_
// Texts as files of token ids.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// Token ids [skip, skip + count) of a file; a negative count: all that follow. Which file it is:
//   NAME.u16, NAME.u32   little-endian ids, 2 or 4 bytes each, without a header
//   NAME.npy             NumPy's: one dimension, little-endian integers of 1, 2, 4 or 8 bytes
//   any other name       .npy where it begins as one does, else as .u16
// DataLoss where the file is empty, of an odd size, or its header is not what follows it;
// InvalidArgument for an array of another kind and for ids that are no int32_t from 0; OutOfRange
// beyond its end. Nothing is allocated by a header's word alone.
absl::StatusOr<std::vector<int32_t>> ReadTokens(const std::string& path, int64_t skip,
                                                int64_t count);
// Whether a file is of token ids by its name, where text is allowed as well.
bool IsTokenFile(const std::string& path);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_TEXT_TOKEN_FILE_H_
