#ifndef SLUICE_RUNTIME_SERVICE_ENDPOINT_H_
#define SLUICE_RUNTIME_SERVICE_ENDPOINT_H_
// Where a server listens, and clients look for it, when nobody says: a socket in a folder that is
// this user's alone. No page and no other user can reach it.
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
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
absl::Status MakeDefaultFolder();

// Where state goes that is called by a bare file name: a folder of this user's for state,
// $XDG_STATE_HOME/sluice or ~/.local/state/sluice. Other paths stay as they are.
std::string StatePath(const std::string& name);
// That folder is there, for a path in it; other folders are their owner's to make.
absl::Status MakeStateFolder(const std::string& path);

// Whether a server may listen there: tcp://HOST:PORT or ipc://PATH, the path no ordinary file.
absl::Status CheckEndpoint(absl::string_view endpoint);
// ZeroMQ removes what stands at an ipc path before it binds: another server's socket would be
// taken over in silence.
absl::Status CheckUnused(absl::string_view endpoint);
// As it was asked for: sockets that speak IPv6 too call 127.0.0.1 [::ffff:127.0.0.1].
std::string ReadableEndpoint(std::string endpoint);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_ENDPOINT_H_
