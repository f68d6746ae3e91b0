#include "sluice/runtime/text/text_file.h"

#include <zlib.h>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/base/regular_file.h"

SLUICE_BEGIN_NAMESPACE
absl::StatusOr<std::string> ReadTextFile(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(RegularFile opened, RegularFile::Open(path));
  const int fd = opened.Release();
  gzFile file = gzdopen(fd, "rb");  // reads plain files as they are
  if (file == nullptr) {
    ::close(fd);
    return absl::ResourceExhaustedError(absl::StrCat(path, ": no memory to read it"));
  }
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
