#include "sluice/runtime/service/endpoint.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "sluice/api/check.h"

SLUICE_BEGIN_NAMESPACE
namespace {
absl::Status CheckTcpEndpoint(absl::string_view endpoint, absl::string_view address) {
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  const bool good = colon != absl::string_view::npos && colon > 0 &&
                    (address.substr(colon + 1) == "*" ||
                     (absl::SimpleAtoi(address.substr(colon + 1), &port) && port <= 65535));
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("endpoint: '", endpoint, "'; wanted tcp://HOST:PORT, the port 0 to 65535 or *"));
}

// A path that a socket may be made at. ZeroMQ removes whatever stands there first.
absl::Status CheckIpcEndpoint(absl::string_view endpoint, absl::string_view path) {
  constexpr size_t kMost = sizeof(sockaddr_un::sun_path) - 1;
  if (path.empty() || path.size() > kMost)
    return absl::InvalidArgumentError(absl::StrCat(
        "endpoint: '", endpoint, "'; wanted ipc://PATH of 1 to ", kMost, " characters"));
  if (path[0] == '@') return absl::OkStatus();
  struct stat there = {};
  if (stat(std::string(path).c_str(), &there) == 0 && !S_ISSOCK(there.st_mode))
    return absl::AlreadyExistsError(
        absl::StrCat("endpoint: '", endpoint, "' names a file that is no socket"));
  return absl::OkStatus();
}
}  // namespace

absl::Status MakeDefaultFolder() {
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

namespace {
std::string StateFolder() {
  const char* state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && *state == '/') return absl::StrCat(state, "/sluice");
  const char* home = std::getenv("HOME");
  return home != nullptr && *home == '/' ? absl::StrCat(home, "/.local/state/sluice") : "";
}
}  // namespace

std::string StatePath(const std::string& name) {
  if (name.empty() || name.find('/') != std::string::npos || name[0] == ':') return name;
  const std::string folder = StateFolder();
  return folder.empty() ? name : absl::StrCat(folder, "/", name);
}

absl::Status MakeStateFolder(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (folder.empty() || folder != StateFolder()) return absl::OkStatus();
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  if (!failed) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat(folder.string(), ": ", failed.message(),
                   "; say where state goes: state { sqlite: \"/path\" }"));
}

absl::Status CheckEndpoint(absl::string_view endpoint) {
  absl::string_view address = endpoint;
  if (absl::ConsumePrefix(&address, "tcp://")) return CheckTcpEndpoint(endpoint, address);
  if (absl::ConsumePrefix(&address, "ipc://")) return CheckIpcEndpoint(endpoint, address);
  return absl::InvalidArgumentError(
      absl::StrCat("endpoint: '", endpoint, "'; allowed: tcp://HOST:PORT, ipc://PATH"));
}

absl::Status CheckUnused(absl::string_view endpoint) {
  if (!absl::ConsumePrefix(&endpoint, "ipc://") || endpoint.empty() || endpoint[0] == '@')
    return absl::OkStatus();
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  endpoint.copy(address.sun_path, sizeof address.sun_path - 1);
  const int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (s < 0) return absl::ResourceExhaustedError("no socket is left");
  const bool answers = connect(s, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  close(s);
  if (!answers) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("endpoint ipc://", endpoint, ": another server listens there"));
}

std::string ReadableEndpoint(std::string endpoint) {
  const size_t mapped = endpoint.find("[::ffff:");
  const size_t end = endpoint.find(']');
  if (mapped == std::string::npos || end == std::string::npos ||
      endpoint.find('.') == std::string::npos)
    return endpoint;
  return absl::StrReplaceAll(endpoint, {{"[::ffff:", ""}, {"]", ""}});
}
SLUICE_END_NAMESPACE
