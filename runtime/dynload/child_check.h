#ifndef SLUICE_RUNTIME_DYNLOAD_CHILD_CHECK_H_
#define SLUICE_RUNTIME_DYNLOAD_CHILD_CHECK_H_
// What code of others does is tried in a child process first, so that the host sees it crash, exit,
// sleep for ever or print, and suffers none of it.
#include <chrono>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// How long a plug-in may take to load where the caller does not say.
inline constexpr std::chrono::milliseconds kChildCheckLimit{10'000};

// Runs `load` in a child process and returns what it returned there, or why it did not: it crashed,
// it ended the process, or `limit` (above zero) passed. The text may have up to 1 MiB.
//
// The child starts with none of the host's descriptors but stderr, none of its signal handlers and
// exit handlers, and in a session of its own; all that is left in that session is killed when it
// ends or when the time is up. It answers through memory that the two share. That memory has
// neither a descriptor nor a name, cannot be touched while `load` runs, and counts only with a
// random seal of this call. So nothing that the loaded code writes, and no process that it leaves
// behind, passes for an answer or keeps the caller waiting.
//
// Limits: this finds what is broken, it contains nothing that is hostile. Code that searches the
// child's memory can find the seal, and a process that moves to another session outlives the check.
// Who lets the host load a file trusts its author. `load` runs in a fork of a process that may have
// other threads: it may take no lock that they hold, but malloc's and the loader's.
absl::StatusOr<std::string> CheckInChild(absl::FunctionRef<absl::StatusOr<std::string>()> load,
                                         std::chrono::milliseconds limit = kChildCheckLimit);

// Opens a file for reading (close-on-exec; the caller closes it). Whatever is no regular file, or
// no link to one, is refused: reading a FIFO or a device might never end.
absl::StatusOr<int> OpenRegularFile(const std::string& path);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_DYNLOAD_CHILD_CHECK_H_
