#ifndef SLUICE_RUNTIME_STORE_REDIS_LINK_H_
#define SLUICE_RUNTIME_STORE_REDIS_LINK_H_
// A line to Redis that stays: it reconnects, and in a cluster goes where the keys are. All keys of
// a caller carry one hash tag, so that one node has them all and one connection is enough.
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "sluice/api/version.h"
#include "sluice/runtime/store/redis_connection.h"
#include "sluice/runtime/store/store.h"

SLUICE_BEGIN_NAMESPACE
class RedisLink {
 public:
  // What an acknowledged write survives.
  struct Persistence {
    bool durable = false;
    std::string text = "redis, not asked yet";
  };
  // `timeout_ms`: of each answer.
  RedisLink(const RedisOptions& options, int timeout_ms);

  // To the first address that answers.
  absl::Status Connect();
  // Commands have to bear repetition. A lost connection repeats them once; a server that still
  // loads its file, or a cluster that has no owner for the keys yet, for as long as the patience
  // lasts. `timeout_ms` 0: the link's.
  absl::StatusOr<RedisReply> Call(const RedisCommand& command, int timeout_ms = 0);
  // The same for what must not be lost: where the cluster's node has replicas, one of them has it.
  absl::StatusOr<RedisReply> Write(const RedisCommand& command);
  // Of the server that is connected, asked when it was.
  Persistence persistence() const;

 private:
  enum class Next { kDone, kAgain, kLater };  // take the answer, repeat at once, repeat in a moment
  struct Task {
    const RedisCommand& command;
    bool confirm = false;
    int timeout_ms = 0;
  };

  absl::StatusOr<RedisReply> Repeat(const Task& task);
  absl::StatusOr<RedisReply> Attempt(const Task& task, Next& next);
  absl::StatusOr<RedisReply> SendTo(RedisConnection& c, const Task& task) const;
  // What a cluster's error asks for.
  absl::StatusOr<RedisReply> Redirect(const redisReply& error, const Task& task, Next& next);
  absl::StatusOr<RedisReply> Ask(const std::string& address, const Task& task, Next& next);
  absl::Status ConnectTo(const std::string& address);
  absl::Status ConnectAnywhere();
  absl::Status LearnNodes(RedisConnection& c);

  const RedisOptions options_;
  const int timeout_ms_;
  std::mutex mutex_;
  std::vector<std::string> seeds_;  // as configured
  std::set<std::string> nodes_;     // as the cluster told
  size_t turn_ = 0;                 // which address is tried first
  std::unique_ptr<RedisConnection> connection_;
  mutable std::mutex persistence_mutex_;
  Persistence persistence_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_STORE_REDIS_LINK_H_
