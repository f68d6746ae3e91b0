#ifndef SLUICE_RUNTIME_STORE_REDIS_CONNECTION_H_
#define SLUICE_RUNTIME_STORE_REDIS_CONNECTION_H_
// One connection to one Redis server.
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sluice/api/version.h"
#include "sluice/runtime/store/store.h"

struct redisContext;
struct redisReply;

SLUICE_BEGIN_NAMESPACE
struct FreeRedisReply {
  void operator()(redisReply* r) const;
};
using RedisReply = std::unique_ptr<redisReply, FreeRedisReply>;
using RedisCommand = std::vector<std::string>;

class RedisConnection {
 public:
  // Connects and says who it is. Unauthenticated: user or password are missing or wrong.
  static absl::StatusOr<std::unique_ptr<RedisConnection>> Open(const std::string& address,
                                                               const RedisOptions& options,
                                                               int timeout_ms);
  ~RedisConnection();
  const std::string& address() const { return address_; }
  // A reply that is an error is a reply; an error means that this connection is over.
  absl::StatusOr<RedisReply> Send(const RedisCommand& command, int timeout_ms);
  // Waits until a replica has what was sent here, if the server has any that is connected, one that
  // still copies too.
  absl::Status Confirm();
  // The status of a reply: OK if it is no error.
  absl::Status StatusOf(const redisReply& reply) const;
  bool over() const { return over_; }

 private:
  RedisConnection(std::string address, int timeout_ms)
      : address_(std::move(address)), timeout_ms_(timeout_ms) {}
  absl::Status Connect();
  absl::Status Introduce(const RedisOptions& options);
  absl::Status Over(absl::string_view why);

  const std::string address_;
  const int timeout_ms_;
  redisContext* context_ = nullptr;
  bool over_ = false;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_STORE_REDIS_CONNECTION_H_
