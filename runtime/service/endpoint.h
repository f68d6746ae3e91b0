#ifndef SLUICE_RUNTIME_SERVICE_ENDPOINT_H_
#define SLUICE_RUNTIME_SERVICE_ENDPOINT_H_
// Where a server listens, and clients look for it, when nobody says: a socket in a folder that is
// this user's alone. No page and no other user can reach it.
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// $XDG_RUNTIME_DIR, or a folder of the user's in /tmp.
inline std::string DefaultFolder() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime == '/') return runtime;
  return absl::StrCat("/tmp/sluice-", getuid());
}
inline std::string DefaultEndpoint() {
  return absl::StrCat("ipc://", DefaultFolder(), "/sluice.sock");
}

// The server's part: the folder is there, and nobody else made it or may write to it.
inline absl::Status MakeDefaultFolder() {
  const std::string folder = DefaultFolder();
  if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST)
    return absl::UnavailableError(absl::StrCat(folder, ": ", std::strerror(errno)));
  struct stat there = {};
  if (lstat(folder.c_str(), &there) != 0 || !S_ISDIR(there.st_mode) || there.st_uid != getuid() ||
      (there.st_mode & 022) != 0)
    return absl::PermissionDeniedError(absl::StrCat(
        folder, ": is no folder that only this user may write to; say where to listen: endpoint"));
  return absl::OkStatus();
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_ENDPOINT_H_
