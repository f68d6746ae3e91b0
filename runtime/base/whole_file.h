#ifndef SLUICE_RUNTIME_BASE_WHOLE_FILE_H_
#define SLUICE_RUNTIME_BASE_WHOLE_FILE_H_
// Files that are there whole or not at all.
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "sluice/api/check.h"

SLUICE_BEGIN_NAMESPACE
// Written beside and renamed, so that readers see the old or the new file, and a disk that fills up
// leaves the old one or none. What exists and is no regular file (a device, a folder) is refused
// and not replaced.
inline absl::Status WriteWholeFile(const std::string& path, absl::string_view content) {
  std::error_code error;
  const auto there = std::filesystem::status(path, error);
  if (std::filesystem::exists(there) && !std::filesystem::is_regular_file(there))
    return absl::InvalidArgumentError(
        absl::StrCat("cannot write ", path,
                     ": it is no regular file; allowed: a new file or one "
                     "to replace"));
  const std::string part = path + ".part";
  std::ofstream f(part, std::ios::binary);
  f.write(content.data(), static_cast<std::streamsize>(content.size()));
  f.close();
  if (f) std::filesystem::rename(part, path, error);
  if (f && !error) return absl::OkStatus();
  std::error_code ignored;
  std::filesystem::remove(part, ignored);
  return absl::UnavailableError(
      absl::StrCat("cannot write ", path, "; allowed: a file in a folder that may be written"));
}

// Whether WriteWholeFile would work, for asking before long work and not after it.
inline absl::Status CheckWritable(const std::string& path) {
  const std::string probe = path + ".probe";
  SLUICE_RETURN_IF_ERROR(WriteWholeFile(probe, ""));
  std::error_code error;
  std::filesystem::remove(probe, error);
  const auto there = std::filesystem::status(path, error);
  if (!std::filesystem::exists(there) || std::filesystem::is_regular_file(there))
    return absl::OkStatus();
  return WriteWholeFile(path, "");  // says why not
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_BASE_WHOLE_FILE_H_
