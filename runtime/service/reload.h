#ifndef SLUICE_RUNTIME_SERVICE_RELOAD_H_
#define SLUICE_RUNTIME_SERVICE_RELOAD_H_
// A configuration that is read again while its predecessor serves: read and checked on a thread of
// its own, compared, learned anew where that is needed, and only then taken over.
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/runtime/service/config.h"

SLUICE_BEGIN_NAMESPACE
// What a running server takes over, what waits for a restart, or why it takes nothing.
struct ReloadPlan {
  std::shared_ptr<const ServerSettings> settings;  // what waits keeps its old value here
  std::vector<std::string> changes;                // "limits.max_batch: 1024 -> 10"
  std::vector<std::string> restarts;               // the same for what waits
};
absl::StatusOr<ReloadPlan> PlanReload(const ServerSettings& was, ServerSettings now);

class Reload {
 public:
  ~Reload() {
    if (loading_.valid()) loading_.wait();
  }
  // Reads the file; `done` is called from another thread. One at a time: false while it reads.
  bool Start(const std::string& path, std::function<void()> done);
  bool reading() const { return loading_.valid(); }
  // What was read, once; nothing while it goes on.
  std::optional<absl::StatusOr<ServerSettings>> Take();

 private:
  std::future<absl::StatusOr<ServerSettings>> loading_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_RELOAD_H_
