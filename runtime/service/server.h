#ifndef SLUICE_RUNTIME_SERVICE_SERVER_H_
#define SLUICE_RUNTIME_SERVICE_SERVER_H_
// The sidecar: a ZeroMQ ROUTER that answers sluice.v1 requests. One thread serves it, in turns with
// those of an optional HTTP server; the learner's thread writes to disk. Nothing is dropped without
// an answer or a counter.
#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "sluice/runtime/service/config.h"

SLUICE_BEGIN_NAMESPACE
class Server {
 public:
  struct Options {
    std::string config_path;  // reread on Reload; "": only what Create was given
    std::function<void(const std::string& line)> log;  // one JSON object a line; empty: silent
  };
  // Binds endpoints, opens the store, restores what was learned.
  static absl::StatusOr<std::unique_ptr<Server>> Create(ServerSettings, Options);
  virtual ~Server() = default;
  // Serves until Stop, then drains: answers what is queued, makes feedback durable, saves a
  // snapshot.
  virtual absl::Status Run() = 0;
  // From any thread or a signal handler.
  virtual void Stop() = 0;
  virtual void Reload() = 0;
  // Where it really listens: tcp ports of 0 are filled in.
  virtual const std::vector<std::string>& endpoints() const = 0;
  virtual int http_port() const = 0;  // 0: none
  // What an acknowledged outcome survives.
  virtual std::string durability() const = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_SERVER_H_
