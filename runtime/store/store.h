#ifndef SLUICE_RUNTIME_STORE_STORE_H_
#define SLUICE_RUNTIME_STORE_STORE_H_
// Where outcomes and snapshots outlive the process. An outcome is kept once for its decision id, in
// one order that every reader sees. Its sequence number is its own for ever: trimming the log
// shifts nothing.
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

// A repeat is known as one while its outcome is kept, and while it is among this many newest ones,
// trimmed or not; in memory, among the newest `bound`.
inline constexpr uint64_t kIdsKept = 4'000'000;

class Store {
 public:
  virtual ~Store() = default;
  virtual absl::string_view name() const = 0;
  // Other processes append too.
  virtual bool shared() const = 0;
  // Does an acknowledged Append survive kill -9 of whoever keeps it?
  virtual bool durable() const = 0;
  // The same in words. Redis is asked at every connection: what it says may change.
  virtual std::string durability() const = 0;
  // The first of `count` numbers that nobody else ever gets. Numbers start at 1.
  virtual absl::StatusOr<uint64_t> LeaseIds(uint64_t count) = 0;
  // As durable as said when it returns. Per outcome: was it new? A failure keeps all or none; what
  // a lost connection kept counts as old when it is repeated.
  virtual absl::StatusOr<std::vector<bool>> Append(absl::Span<const StoredOutcome>) = 0;
  // Sequence of the newest outcome, trimmed or not; 0: there never was one.
  virtual absl::StatusOr<uint64_t> Newest() = 0;
  // Sequence of the first outcome that can be read; Newest() + 1: none can.
  virtual absl::StatusOr<uint64_t> Oldest() = 0;
  // Outcomes after `after`, in order. DataLoss: the log lost its end, which `after` lies in, or
  // outcomes after it were removed. What was visited until then is right.
  virtual absl::Status Read(
      uint64_t after, absl::FunctionRef<void(uint64_t sequence, absl::string_view bytes)>) = 0;
  // Removes every outcome whose sequence is below `before`.
  virtual absl::Status Trim(uint64_t before) = 0;
  virtual absl::Status SaveSnapshot(const std::string& key, const StoredSnapshot&) = 0;
  virtual absl::StatusOr<StoredSnapshot> LoadSnapshot(
      const std::string& key) = 0;  // NotFound: none
  // A value that is made once and then stays: the first writer's.
  virtual absl::StatusOr<std::string> GetOrPut(const std::string& key,
                                               const std::string& value) = 0;
  // Shows `mine` under the name `who` to the other servers of a shared store for `ttl_ms`, and
  // returns what they show. One round trip, waits for no Append, outlives nothing.
  virtual absl::StatusOr<std::vector<std::string>> Exchange(const std::string& who,
                                                            const std::string& mine, int ttl_ms) {
    (void)who;
    (void)mine;
    (void)ttl_ms;
    return std::vector<std::string>{};
  }
};

// A server, or a reader beside it: one that never writes and makes no store. (SQLite itself may
// make PATH-wal and PATH-shm for it, both without content.)
enum class StoreAccess { kServe, kRead };

// The error of Read when `after` lies outside a log that holds `oldest` to `newest`; else OK.
absl::Status CheckCursor(absl::string_view name, uint64_t after, uint64_t oldest, uint64_t newest);

inline constexpr uint64_t kMemoryOutcomes = 1'000'000;
// Trims itself to the last `bound` outcomes and knows as many ids.
std::unique_ptr<Store> MakeMemoryStore(uint64_t bound = kMemoryOutcomes);

// kServe creates the file and keeps a second server out through PATH-lock. WAL journal, every
// Append synced to disk. kRead of a file that is not there is NotFound. Trimmed pages are used
// again, the file does not shrink.
absl::StatusOr<std::unique_ptr<Store>> OpenSqliteStore(const std::string& path,
                                                       StoreAccess access = StoreAccess::kServe,
                                                       uint64_t ids_kept = kIdsKept);
struct RedisOptions {
  std::string address;   // host:port or a unix socket's path; nodes of a cluster between commas
  std::string prefix;    // of every key; without braces
  std::string user;      // "": the default user
  std::string password;  // "": none
  bool cluster = false;
  int patience_ms = 5000;  // how long a call waits while a server loads or a cluster fails over
  StoreAccess access = StoreAccess::kServe;
  uint64_t ids_kept = kIdsKept;
};
// Redis 6.2 or later. kServe moves a log that an earlier version wrote to where it belongs today.
// In a cluster a write is acknowledged once a replica has it, if its node has replicas; the user
// needs INFO and WAIT for that.
absl::StatusOr<std::unique_ptr<Store>> OpenRedisStore(const RedisOptions& options);
absl::StatusOr<std::unique_ptr<Store>> OpenRedisStore(const std::string& address,
                                                      const std::string& prefix);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_STORE_STORE_H_
