#ifndef SLUICE_TESTS_SUPPORT_REDIS_SERVER_H_
#define SLUICE_TESTS_SUPPORT_REDIS_SERVER_H_
// A redis-server of the test's own: in a temporary folder, on a unix socket, appending to disk.
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
inline constexpr char kRedisServer[] = "/usr/bin/redis-server";

// A process that does not outlive its test.
class RedisProcess {
 public:
  ~RedisProcess() { End(SIGKILL); }
  void Start(const std::vector<std::string>& arguments) {
    std::vector<char*> argv = {const_cast<char*>("redis-server")};
    for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // nor a test that crashes
    if (freopen("/dev/null", "w", stdout) == nullptr ||
        freopen("/dev/null", "w", stderr) == nullptr)
      _exit(127);
    execv(kRedisServer, argv.data());
    _exit(127);
  }
  void Signal(int signal) const { kill(pid_, signal); }
  void End(int signal) {
    if (pid_ <= 0) return;
    kill(pid_, signal);
    kill(pid_, SIGCONT);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  bool running() const { return pid_ > 0; }

 private:
  pid_t pid_ = -1;
};

class RedisServer {
 public:
  // `more`: its arguments, over those of a server that syncs every write.
  explicit RedisServer(std::vector<std::string> more = {}) : more_(std::move(more)) {
    std::string folder = "/tmp/sluice-redis-XXXXXX";
    if (access(kRedisServer, X_OK) != 0 || mkdtemp(folder.data()) == nullptr) return;
    folder_ = folder;
    Start();
  }
  ~RedisServer() {
    Stop(SIGTERM);
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }
  bool running() const { return process_.running(); }
  std::string address() const { return folder_ + "/socket"; }
  void Restart(int signal = SIGTERM) {
    Stop(signal);
    Start();
  }

 private:
  void Start() {
    std::vector<std::string> arguments = {"--port",        "0",      "--unixsocket", address(),
                                          "--dir",         folder_,  "--appendonly", "yes",
                                          "--appendfsync", "always", "--save",       ""};
    arguments.insert(arguments.end(), more_.begin(), more_.end());
    process_.Start(arguments);
    for (int i = 0; i < 1000 && !Answers(); ++i) usleep(10000);
  }
  // The socket appears before the server has read its file. Without a password it says NOAUTH.
  bool Answers() const {
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un at{};
    at.sun_family = AF_UNIX;
    address().copy(at.sun_path, sizeof at.sun_path - 1);
    char answer[8] = "";
    const bool pong = connect(fd, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0 &&
                      send(fd, "PING\r\n", 6, MSG_NOSIGNAL) == 6 && recv(fd, answer, 5, 0) == 5 &&
                      (answer[1] == 'P' || answer[1] == 'N');
    close(fd);
    return pong;
  }
  void Stop(int signal) {
    process_.End(signal);
    unlink(address().c_str());
  }
  std::vector<std::string> more_;
  std::string folder_;
  RedisProcess process_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_REDIS_SERVER_H_
