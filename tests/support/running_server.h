#ifndef SLUICE_TESTS_SUPPORT_RUNNING_SERVER_H_
#define SLUICE_TESTS_SUPPORT_RUNNING_SERVER_H_
// A sidecar on a thread of the test, on an ipc socket of its own.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/service/allow_list.h"
#include "sluice/runtime/service/client.h"
#include "sluice/runtime/service/server.h"

SLUICE_BEGIN_NAMESPACE
inline std::string MakeTempDir() {
  std::string path = "/tmp/sluice-test-XXXXXX";
  EXPECT_NE(mkdtemp(path.data()), nullptr);
  return path;
}
// Keys of a server in a folder of its own, and the list of who may connect to it.
struct CurveFiles {
  std::string folder = MakeTempDir();
  CurveKeys server = *NewCurveKeys();

  CurveFiles() { std::ofstream(folder + "/secret") << server.secret << "\n"; }
  void Allow(const std::vector<CurveKeys>& keys) const {
    std::ofstream list(folder + "/allow");
    list << "# clients\n";
    for (const CurveKeys& k : keys) list << k.public_key << "\n";
  }
  std::string Config() const {
    return absl::StrCat("curve { secret_key_file: \"", folder, "/secret\" allow_file: \"", folder,
                        "/allow\" }");
  }
  // Of a client with these keys.
  Client::Options Options(const CurveKeys& own) const {
    Client::Options o;
    o.server_key = server.public_key;
    o.keys = own;
    return o;
  }
};
inline constexpr char kTwoStages[] = R"(
  task: "math" task: "code"
  stage { agent { id: "plan-a" cost_usd: 0.001 } agent { id: "plan-b" cost_usd: 0.01 } }
  stage {
    agent { id: "solve-a" cost_usd: 0.002 }
    agent { id: "solve-b" cost_usd: 0.02 }
    agent { id: "solve-c" cost_usd: 0.2 }
  }
  learning { publish_ms: 1 epoch_decisions: 16 labelled: true }
)";

class RunningServer {
 public:
  // `config`: everything but endpoints, unless it names one.
  explicit RunningServer(const std::string& config = kTwoStages,
                         const std::string& config_path = "")
      : folder_(MakeTempDir()) {
    const std::string text = config.find("endpoint:") != std::string::npos
                                 ? config
                                 : absl::StrCat("endpoint: \"ipc://", folder_, "/s\"\n", config);
    auto settings = config_path.empty() ? ParseSettings(text, "test") : LoadSettings(config_path);
    EXPECT_TRUE(settings.ok()) << settings.status();
    Server::Options options;
    options.config_path = config_path;
    options.log = [this](const std::string& line) {
      std::lock_guard lock(mutex_);
      log_.push_back(line);
    };
    auto server = Server::Create(*std::move(settings), options);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    thread_ = std::thread([this] { status_ = server_->Run(); });
  }
  ~RunningServer() { Stop(); }
  void Stop() {
    if (!thread_.joinable()) return;
    server_->Stop();
    thread_.join();
    EXPECT_TRUE(status_.ok()) << status_;
    server_.reset();
  }
  std::unique_ptr<Client> Connect(Client::Options options = {}) {
    auto c = Client::Connect(endpoint(), options);
    EXPECT_TRUE(c.ok()) << c.status();
    return *std::move(c);
  }
  std::string endpoint() const { return server_->endpoints()[0]; }
  Server& server() { return *server_; }
  std::string log() {
    std::lock_guard lock(mutex_);
    std::string all;
    for (const std::string& l : log_) absl::StrAppend(&all, l, "\n");
    return all;
  }

 private:
  std::string folder_;
  std::mutex mutex_;
  std::vector<std::string> log_;
  std::unique_ptr<Server> server_;
  std::thread thread_;
  absl::Status status_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_RUNNING_SERVER_H_
