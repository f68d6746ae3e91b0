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

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
class RedisServer {
 public:
  RedisServer() {
    std::string folder = "/tmp/sluice-redis-XXXXXX";
    if (access("/usr/bin/redis-server", X_OK) != 0 || mkdtemp(folder.data()) == nullptr) return;
    folder_ = folder;
    Start();
  }
  ~RedisServer() {
    Stop();
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }
  bool running() const { return pid_ > 0; }
  std::string address() const { return folder_ + "/socket"; }
  void Restart() {
    Stop();
    Start();
  }

 private:
  void Start() {
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);  // it must not outlive a test that crashes
      if (freopen("/dev/null", "w", stdout) == nullptr ||
          freopen("/dev/null", "w", stderr) == nullptr)
        _exit(127);
      execl("/usr/bin/redis-server", "redis-server", "--port", "0", "--unixsocket",
            address().c_str(), "--dir", folder_.c_str(), "--appendonly", "yes", "--appendfsync",
            "always", "--save", "", nullptr);
      _exit(127);
    }
    for (int i = 0; i < 1000 && !Answers(); ++i) usleep(10000);
  }
  // The socket appears before the server has read its file.
  bool Answers() const {
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un at{};
    at.sun_family = AF_UNIX;
    address().copy(at.sun_path, sizeof at.sun_path - 1);
    char answer[8] = "";
    const bool pong = connect(fd, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0 &&
                      send(fd, "PING\r\n", 6, MSG_NOSIGNAL) == 6 && recv(fd, answer, 5, 0) == 5 &&
                      answer[1] == 'P';
    close(fd);
    return pong;
  }
  void Stop() {
    if (pid_ <= 0) return;
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
    unlink(address().c_str());
    pid_ = -1;
  }
  std::string folder_;
  pid_t pid_ = -1;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_REDIS_SERVER_H_
