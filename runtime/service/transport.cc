#include "sluice/runtime/service/transport.h"

#include <sodium.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/service/clock.h"
#include "sluice/runtime/service/endpoint.h"

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
  inside_.resize(24);
  randombytes_buf(inside_.data(), inside_.size());
  inside_[0] = '!';  // ZeroMQ keeps identities that begin with 0 for itself
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
  if (config.http().port() > 0) router_.bind(kInside);
  return absl::OkStatus();
}

bool Transport::Receive(Message& m) {
  if (!router_.recv(m.body, zmq::recv_flags::dontwait)) return false;
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

std::string Transport::Property(zmq::message_t& frame, const char* name) {
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

bool Transport::Send(const Peer& peer, const v1::Response& response) {
  zmq::message_t body(response.ByteSizeLong());
  response.SerializeWithCachedSizesToArray(body.data<uint8_t>());
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
