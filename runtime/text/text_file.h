#ifndef SLUICE_RUNTIME_TEXT_TEXT_FILE_H_
#define SLUICE_RUNTIME_TEXT_TEXT_FILE_H_
#include <string>

#include "absl/status/statusor.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// A whole file, gzip or plain; at most 1 GiB of text. NotFound, InvalidArgument (no regular
// file), DataLoss (a gzip file cut short) or
// ResourceExhausted.
absl::StatusOr<std::string> ReadTextFile(const std::string& path);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_TEXT_TEXT_FILE_H_
