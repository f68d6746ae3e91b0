#ifndef SLUICE_RUNTIME_SERVICE_CONNECTIONS_H_
#define SLUICE_RUNTIME_SERVICE_CONNECTIONS_H_
// Who is connected to a socket: how many at most, and who was turned away before saying anything.
#include <cstdint>
#include <string>
#include <unordered_set>
#include <zmq.hpp>

#include "absl/status/status.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
class Connections {
 public:
  explicit Connections(zmq::context_t& context) : events_(context, zmq::socket_type::pair) {}
  // A connection more than `most` is closed again: with no descriptor left ZeroMQ would not refuse
  // it but ask the kernel for it again and again.
  absl::Status Watch(zmq::socket_t& socket, size_t most);
  // What a poll waits on, once Notice has read all that came.
  int fd() const { return fd_; }
  void Notice();
  struct Refused {
    uint64_t count = 0;
    std::string last;  // why
  };
  // Since the last call.
  Refused TakeRefused() { return std::exchange(refused_, {}); }
  size_t open() const { return open_.size(); }
  // Descriptors that this process may still open for connections.
  static size_t Room();

 private:
  void Accepted(int fd);
  void Refuse(std::string why);
  zmq::socket_t events_;
  int fd_ = -1;
  size_t most_ = 0;
  std::unordered_set<int> open_;  // descriptors
  Refused refused_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_CONNECTIONS_H_
