#include "sluice/runtime/service/transport.h"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/service/clock.h"
#include "sluice/runtime/service/endpoint.h"
#include "sluice/runtime/service/wire.h"

SLUICE_BEGIN_NAMESPACE
namespace {
// Messages that wait for one peer, each way. Whoever does not read loses answers beyond these, and
// over TCP the connection. ZeroMQ's own heartbeats are not used: with them libzmq 4.3.4 aborts when
// a peer goes whose messages still wait (stream_engine_base.cpp, !_io_error).
constexpr int kWaitingIn = 256;
constexpr int kWaitingOut = 2048;
constexpr int kUnreadMs = 15000;
constexpr int kIdleS = 60;
constexpr int kProbeS = 10;
constexpr int kProbes = 3;
constexpr int kGreetingMs = 10000;
constexpr int kLookUp = 256;  // messages in a row, after which the other descriptors are looked at
constexpr double kPatience = 0.05;  // share of the time that may go to waiting for slow readers
}  // namespace

Transport::~Transport() { router_.close(); }

absl::StatusOr<std::unique_ptr<Transport>> Transport::Open(zmq::context_t& context,
                                                           const v1::ServerConfig& config) {
  std::unique_ptr<Transport> t;
  try {
    t.reset(new Transport(context));
    SLUICE_RETURN_IF_ERROR(t->Set(context, config));
    SLUICE_RETURN_IF_ERROR(t->Bind(config));
  } catch (const zmq::error_t& error) {
    return absl::UnavailableError(absl::StrCat("zeromq: ", error.what()));
  }
  return t;
}

absl::Status Transport::Set(zmq::context_t& context, const v1::ServerConfig& config) {
  router_.set(zmq::sockopt::router_mandatory, true);
  router_.set(zmq::sockopt::linger, 1000);
  router_.set(zmq::sockopt::maxmsgsize, static_cast<int64_t>(config.limits().max_message_bytes()));
  router_.set(zmq::sockopt::rcvhwm, kWaitingIn);
  router_.set(zmq::sockopt::sndhwm, kWaitingOut);
  router_.set(zmq::sockopt::tcp_maxrt, kUnreadMs);
  router_.set(zmq::sockopt::tcp_keepalive, 1);
  router_.set(zmq::sockopt::tcp_keepalive_idle, kIdleS);
  router_.set(zmq::sockopt::tcp_keepalive_intvl, kProbeS);
  router_.set(zmq::sockopt::tcp_keepalive_cnt, kProbes);
  router_.set(zmq::sockopt::handshake_ivl, kGreetingMs);
  router_.set(zmq::sockopt::ipv6, true);
  const v1::CurveConfig& curve = config.curve();
  encrypted_ = !curve.secret_key_file().empty();
  if (encrypted_) {
    SLUICE_ASSIGN_OR_RETURN(const CurveKeys keys, ReadSecretKey(curve.secret_key_file()));
    router_.set(zmq::sockopt::curve_server, true);
    router_.set(zmq::sockopt::curve_secretkey, keys.secret);
  }
  SLUICE_ASSIGN_OR_RETURN(allow_list_, AllowList::Start(context, curve.allow_file()));
  router_.set(zmq::sockopt::zap_domain, "sluice");
  return connections_.Watch(router_, Connections::Room());
}

absl::Status Transport::Bind(const v1::ServerConfig& config) {
  for (const std::string& e : config.endpoint()) {
    if (e == DefaultEndpoint()) SLUICE_RETURN_IF_ERROR(MakeDefaultFolder());
    SLUICE_RETURN_IF_ERROR(CheckUnused(e));
    try {
      router_.bind(e);
    } catch (const zmq::error_t& error) {
      return absl::UnavailableError(absl::StrCat("endpoint ", e, ": ", error.what(),
                                                 "; wanted tcp://host:port or ipc:///path"));
    }
    endpoints_.push_back(ReadableEndpoint(router_.get(zmq::sockopt::last_endpoint)));
  }
  fd_ = router_.get(zmq::sockopt::fd);
  return absl::OkStatus();
}

bool Transport::Receive(Message& m) {
  empty_ = !router_.recv(m.body, zmq::recv_flags::dontwait);
  if (empty_) return false;
  ++received_;
  m.peer.identity.assign(m.body.data<char>(), m.body.size());
  m.peer.delimiter = false;
  m.frames = 0;
  while (m.body.more()) {
    (void)router_.recv(m.body, zmq::recv_flags::none);
    if (++m.frames == 1 && m.body.size() == 0 && m.body.more()) {
      m.peer.delimiter = true;
      m.frames = 0;
    }
  }
  m.key = encrypted_ ? Property(m.body, "User-Id") : "";
  return true;
}

std::string Transport::Property(const zmq::message_t& frame, const char* name) {
  const char* text = zmq_msg_gets(frame.handle(), name);
  return text != nullptr ? text : "";
}

// The first frame says whether the peer takes more. One that is only slower than its questions gets
// a little time; all of them together no more than the server can spare.
bool Transport::Begin(zmq::message_t& identity) {
  constexpr auto kFlags = zmq::send_flags::sndmore | zmq::send_flags::dontwait;
  if (router_.send(identity, kFlags)) return true;
  const double begin = SteadySeconds();
  patience_s_ = std::min(kPatience, patience_s_ + kPatience * (begin - patience_at_));
  patience_at_ = begin;
  bool sent = false;
  double now = begin;
  while (!sent && now < begin + patience_s_) {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    sent = router_.send(identity, kFlags).has_value();
    now = SteadySeconds();
  }
  patience_s_ = std::max(0.0, patience_s_ - (now - begin));
  return sent;
}

Transport::Woken Transport::Wait(int wake, std::chrono::milliseconds timeout) {
  if (!empty_ && received_ < kLookUp) return {};
  received_ = 0;
  pollfd fds[] = {{fd_, POLLIN, 0}, {wake, POLLIN, 0}, {connections_.fd(), POLLIN, 0}};
  const int ready = poll(fds, std::size(fds), empty_ ? static_cast<int>(timeout.count()) : 0);
  if (ready <= 0) return {.by_time = ready == 0 && empty_};
  if (fds[2].revents != 0) connections_.Notice();
  return {.by_wake = fds[1].revents != 0};
}

void Transport::Post(const Peer& peer, const v1::Response& response, absl::string_view routed) {
  const size_t head = response.ByteSizeLong();
  const size_t tail = routed.empty() ? 0 : 1 + wire::BytesSize(routed.size());
  zmq::message_t body(head + tail);
  response.SerializeWithCachedSizesToArray(body.data<uint8_t>());
  if (tail > 0) {
    char* to = body.data<char>() + head;
    *to++ = wire::Tag(v1::Response::kRouteFieldNumber, wire::kBytes);
    wire::PutBytes(routed, to);
  }
  waiting_bytes_ += body.size();
  outbox_.push_back({peer, std::move(body)});
}

size_t Transport::Flush() {
  size_t lost = 0;
  for (Answer& a : outbox_) lost += !Send(a.peer, a.body);
  outbox_.clear();
  waiting_bytes_ = 0;
  return lost;
}

bool Transport::Send(const Peer& peer, zmq::message_t& body) {
  empty_ = false;
  try {
    zmq::message_t identity(peer.identity.data(), peer.identity.size());
    if (!Begin(identity)) return false;
    zmq::message_t empty;
    if (peer.delimiter) router_.send(empty, zmq::send_flags::sndmore | zmq::send_flags::dontwait);
    router_.send(body, zmq::send_flags::dontwait);
  } catch (const zmq::error_t& e) {
    if (e.num() != EHOSTUNREACH) throw;
    return false;
  }
  return true;
}
SLUICE_END_NAMESPACE
