#include "sluice/runtime/service/connections.h"

#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"

SLUICE_BEGIN_NAMESPACE
absl::Status Connections::Watch(zmq::socket_t& socket, size_t most) {
  constexpr char kEvents[] = "inproc://sluice-connections";
  constexpr int kWanted = ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_ACCEPT_FAILED |
                          ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                          ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
  most_ = most;
  if (zmq_socket_monitor(socket.handle(), kEvents, kWanted) != 0)
    return absl::UnavailableError(absl::StrCat("zeromq: ", zmq_strerror(zmq_errno())));
  events_.set(zmq::sockopt::linger, 0);
  events_.connect(kEvents);
  fd_ = events_.get(zmq::sockopt::fd);
  Notice();
  return absl::OkStatus();
}

void Connections::Notice() {
  zmq::message_t event;
  while (events_.recv(event, zmq::recv_flags::dontwait)) {
    // 16 bits say what, 32 bits with whom.
    uint16_t kind = 0;
    int32_t value = 0;
    if (event.size() >= sizeof kind + sizeof value) {
      std::memcpy(&kind, event.data(), sizeof kind);
      std::memcpy(&value, event.data<char>() + sizeof kind, sizeof value);
    }
    zmq::message_t address;
    if (event.more()) (void)events_.recv(address, zmq::recv_flags::none);
    switch (kind) {
      case ZMQ_EVENT_ACCEPTED:
        Accepted(value);
        break;
      case ZMQ_EVENT_DISCONNECTED:
        open_.erase(value);
        break;
      case ZMQ_EVENT_ACCEPT_FAILED:
        Refuse(absl::StrCat("accept: ", zmq_strerror(value)));
        break;
      case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
        Refuse("not on the allow-list");
        break;
      case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        Refuse("another security or protocol");
        break;
      default:
        Refuse("no greeting");
    }
  }
}

void Connections::Accepted(int fd) {
  open_.insert(fd);
  if (open_.size() <= most_) return;
  shutdown(fd, SHUT_RDWR);  // ZeroMQ sees the end of it and closes
  Refuse(absl::StrCat("more than ", most_, " connections"));
}

void Connections::Refuse(std::string why) {
  ++refused_.count;
  refused_.last = std::move(why);
}

size_t Connections::Room() {
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  std::error_code failed;
  size_t used = 0;
  for (auto it = std::filesystem::directory_iterator("/proc/self/fd", failed);
       !failed && it != std::filesystem::directory_iterator(); it.increment(failed))
    ++used;
  const size_t left = limit.rlim_cur > used ? static_cast<size_t>(limit.rlim_cur) - used : 0;
  // The store, the log and HTTP need some too.
  const size_t kept = std::min<size_t>(64, left / 3);
  return std::max<size_t>(1, left - kept);
}
SLUICE_END_NAMESPACE
