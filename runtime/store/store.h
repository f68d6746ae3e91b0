#ifndef SLUICE_RUNTIME_STORE_STORE_H_
#define SLUICE_RUNTIME_STORE_STORE_H_
// Where outcomes and snapshots outlive the process. An outcome is kept once for its decision id, in
// one order that every reader sees.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
struct StoredOutcome {
  uint64_t decision_id = 0;
  std::string bytes;  // SerializeOutcome
};
struct StoredSnapshot {
  uint64_t through = 0;  // sequence of the last outcome inside
  std::string bytes;
};

class Store {
 public:
  virtual ~Store() = default;
  virtual absl::string_view name() const = 0;
  // Other processes append too.
  virtual bool shared() const = 0;
  // The first of `count` numbers that nobody else ever gets. Numbers start at 1.
  virtual absl::StatusOr<uint64_t> LeaseIds(uint64_t count) = 0;
  // Durable when it returns. Per outcome: was it new? A failure keeps all or none.
  virtual absl::StatusOr<std::vector<bool>> Append(absl::Span<const StoredOutcome>) = 0;
  // Sequence of the newest outcome; 0: none.
  virtual absl::StatusOr<uint64_t> Newest() = 0;
  // Outcomes after `after`, in order.
  virtual absl::Status Read(
      uint64_t after, absl::FunctionRef<void(uint64_t sequence, absl::string_view bytes)>) = 0;
  virtual absl::Status SaveSnapshot(const std::string& key, const StoredSnapshot&) = 0;
  virtual absl::StatusOr<StoredSnapshot> LoadSnapshot(
      const std::string& key) = 0;  // NotFound: none
  // A value that is made once and then stays: the first writer's.
  virtual absl::StatusOr<std::string> GetOrPut(const std::string& key,
                                               const std::string& value) = 0;
};

std::unique_ptr<Store> MakeMemoryStore();
// Creates the file. WAL journal, every Append synced to disk.
absl::StatusOr<std::unique_ptr<Store>> OpenSqliteStore(const std::string& path);
// "host:port" or a unix socket's path. What an acknowledged Append survives is up to the server's
// appendfsync.
absl::StatusOr<std::unique_ptr<Store>> OpenRedisStore(const std::string& address,
                                                      const std::string& prefix);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_STORE_STORE_H_
