#include "sluice/runtime/text/text_file.h"

#include <zlib.h>

#include "absl/strings/str_cat.h"

SLUICE_BEGIN_NAMESPACE
absl::StatusOr<std::string> ReadTextFile(const std::string& path) {
  gzFile file = gzopen(path.c_str(), "rb");  // reads plain files as they are
  if (file == nullptr) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::string text;
  char buffer[1 << 16];
  int n;
  while ((n = gzread(file, buffer, sizeof buffer)) > 0) {
    text.append(buffer, n);
    if (text.size() > (size_t{1} << 30)) {
      gzclose(file);
      return absl::ResourceExhaustedError(absl::StrCat(path, ": more than 1 GiB of text"));
    }
  }
  gzclose(file);
  if (n < 0) return absl::DataLossError(absl::StrCat(path, ": is no whole gzip file"));
  return text;
}
SLUICE_END_NAMESPACE
