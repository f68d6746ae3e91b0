#ifndef SLUICE_TESTS_SUPPORT_RAW_SOCKET_H_
#define SLUICE_TESTS_SUPPORT_RAW_SOCKET_H_
// TCP as bytes, for what no client would say.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// A TCP connection to this machine that speaks bytes.
class Raw {
 public:
  explicit Raw(int port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~Raw() { close(fd_); }
  void Say(const std::string& bytes) {
    EXPECT_EQ(send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  // All that comes until the other side closes, or nothing does for so long.
  std::string Hear(int silence_ms = 2000) {
    std::string all;
    char piece[4096];
    for (pollfd p = {fd_, POLLIN, 0}; poll(&p, 1, silence_ms) > 0;) {
      const ssize_t n = recv(fd_, piece, sizeof piece, 0);
      if (n <= 0) break;
      all.append(piece, static_cast<size_t>(n));
    }
    return all;
  }

 private:
  int fd_;
};
inline int FreePort() {
  const int s = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(bind(s, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  socklen_t size = sizeof address;
  EXPECT_EQ(getsockname(s, reinterpret_cast<sockaddr*>(&address), &size), 0);
  close(s);
  return ntohs(address.sin_port);
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_RAW_SOCKET_H_
