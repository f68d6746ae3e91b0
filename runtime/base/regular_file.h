#ifndef SLUICE_RUNTIME_BASE_REGULAR_FILE_H_
#define SLUICE_RUNTIME_BASE_REGULAR_FILE_H_
// Files that a user names. A pipe, device or folder is refused at once: opening a pipe would wait
// for whoever writes to it, and none of them has a size to check claims against.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/base/hash.h"

SLUICE_BEGIN_NAMESPACE
class RegularFile {
 public:
  // For reading. NotFound where it cannot be opened, InvalidArgument where it is no regular file.
  static absl::StatusOr<RegularFile> Open(const std::string& path) {
    RegularFile f;
    f.path_ = path;
    f.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (f.fd_ < 0)
      return absl::NotFoundError(absl::StrCat("cannot open ", path, ": ", std::strerror(errno)));
    struct stat st {};
    if (::fstat(f.fd_, &st) != 0 || !S_ISREG(st.st_mode))
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": not a regular file; allowed: a file, or a link to one"));
    f.size_ = static_cast<int64_t>(st.st_size);
    return f;
  }
  RegularFile(RegularFile&& other) noexcept
      : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}
  RegularFile& operator=(RegularFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(fd_, other.fd_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~RegularFile() {
    if (fd_ >= 0) ::close(fd_);
  }

  int fd() const { return fd_; }
  int64_t size() const { return size_; }  // in bytes, when it was opened
  // The descriptor, now the caller's to close.
  int Release() { return std::exchange(fd_, -1); }
  // Bytes [at, at + n); DataLoss where the file is shorter by now.
  absl::Status Read(int64_t at, int64_t n, void* to) const {
    char* out = static_cast<char*>(to);
    while (n > 0) {
      const ssize_t got = ::pread(fd_, out, static_cast<size_t>(n), static_cast<off_t>(at));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0)
        return absl::DataLossError(absl::StrCat(path_, ": ", n, " bytes at ", at, " are missing"));
      out += got;
      at += got;
      n -= got;
    }
    return absl::OkStatus();
  }

 private:
  RegularFile() = default;
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
};

// HashText of what is in the file, however large it is.
inline absl::StatusOr<uint64_t> HashFile(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const RegularFile file, RegularFile::Open(path));
  std::vector<char> piece(size_t{1} << 20);
  TextHash hash;
  for (int64_t at = 0; at < file.size();) {
    const int64_t n = std::min<int64_t>(std::ssize(piece), file.size() - at);
    SLUICE_RETURN_IF_ERROR(file.Read(at, n, piece.data()));
    hash.Add({piece.data(), static_cast<size_t>(n)});
    at += n;
  }
  return hash.value();
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_BASE_REGULAR_FILE_H_
