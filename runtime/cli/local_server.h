#ifndef SLUICE_RUNTIME_CLI_LOCAL_SERVER_H_
#define SLUICE_RUNTIME_CLI_LOCAL_SERVER_H_
// A sidecar on a thread of this process, in a temporary folder that goes with it.
#include <stdlib.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "sluice/api/check.h"
#include "sluice/runtime/service/server.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
class LocalServer {
 public:
  // `config` gets the folder and gives protobuf text of sluice.v1.ServerConfig.
  static absl::StatusOr<std::unique_ptr<LocalServer>> Start(
      const std::function<std::string(const std::string& folder)>& config) {
    std::unique_ptr<LocalServer> l(new LocalServer);
    std::string folder = "/tmp/sluice-XXXXXX";
    if (mkdtemp(folder.data()) == nullptr) return absl::UnavailableError("/tmp cannot be written");
    l->folder_ = folder;
    SLUICE_ASSIGN_OR_RETURN(ServerSettings settings,
                            ParseSettings(config(folder), "built-in configuration"));
    SLUICE_ASSIGN_OR_RETURN(l->server_, Server::Create(std::move(settings), {}));
    l->thread_ = std::thread([server = l->server_.get()] { (void)server->Run(); });
    return l;
  }
  ~LocalServer() {
    if (server_ != nullptr) server_->Stop();
    Wait();
    server_.reset();
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }
  void Wait() {
    if (thread_.joinable()) thread_.join();
  }
  const std::string& folder() const { return folder_; }
  const std::string& endpoint() const { return server_->endpoints()[0]; }

 private:
  LocalServer() = default;
  std::string folder_;
  std::unique_ptr<Server> server_;
  std::thread thread_;
};
}  // namespace cli
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_CLI_LOCAL_SERVER_H_
