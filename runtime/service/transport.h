#ifndef SLUICE_RUNTIME_SERVICE_TRANSPORT_H_
#define SLUICE_RUNTIME_SERVICE_TRANSPORT_H_
// The socket: who may connect, one message in, one answer out.
#include <chrono>
#include <memory>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "sluice/runtime/service/allow_list.h"
#include "sluice/runtime/service/connections.h"
#include "sluice/v1/config.pb.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
// Where an answer goes.
struct Peer {
  std::string identity;
  bool delimiter = false;  // a REQ socket's empty frame
};

class Transport {
 public:
  // Binds the endpoints.
  static absl::StatusOr<std::unique_ptr<Transport>> Open(zmq::context_t& context,
                                                         const v1::ServerConfig& config);
  ~Transport();
  // Where it really listens: tcp ports of 0 are filled in.
  const std::vector<std::string>& endpoints() const { return endpoints_; }
  Connections& connections() { return connections_; }

  struct Message {
    Peer peer;
    int frames = 0;  // 1 is right
    zmq::message_t body;
    // The CURVE key that it came under; "" in the clear.
    std::string key;
  };
  // False: none is there.
  bool Receive(Message& m);
  // "" where there is none.
  static std::string PeerAddress(const Message& m) { return Property(m.body, "Peer-Address"); }
  // Whether the key that a message came under is still on the list.
  bool Allows(const std::string& key) { return key.empty() || allow_list_->Holds(key); }
  struct Woken {
    bool by_wake = false;  // `wake` is readable
    bool by_time = false;  // it is up, and nothing came
  };
  // Until a message or news of a connection may be there, `wake` is readable, or the time is up.
  Woken Wait(int wake, std::chrono::milliseconds timeout);

  // Puts an answer into the outbox. `routed`: bytes of a RouteResponse that is the answer's body.
  void Post(const Peer& peer, const v1::Response& response, absl::string_view routed = {});
  // Whether more than one send's worth of answers waits there.
  bool IsFull() const { return outbox_.size() >= kBurst || waiting_bytes_ >= kBurstBytes; }
  // Sends them: together they wake the other threads once. How many could not be delivered: the
  // peer has gone, or does not read.
  size_t Flush();
  // Reads the allow-list where it changed.
  void Refresh() { allow_list_->Refresh(); }

 private:
  explicit Transport(zmq::context_t& context)
      : router_(context, zmq::socket_type::router), connections_(context) {}
  absl::Status Set(zmq::context_t& context, const v1::ServerConfig& config);
  absl::Status Bind(const v1::ServerConfig& config);
  static std::string Property(const zmq::message_t& frame, const char* name);
  bool Begin(zmq::message_t& identity);
  bool Send(const Peer& peer, zmq::message_t& body);

  static constexpr size_t kBurst = 32;
  static constexpr size_t kBurstBytes = 8192;  // what ZeroMQ hands to the system at a time
  struct Answer {
    Peer peer;
    zmq::message_t body;
  };
  std::unique_ptr<AllowList> allow_list_;
  zmq::socket_t router_;
  Connections connections_;
  bool encrypted_ = false;
  std::vector<std::string> endpoints_;
  int fd_ = -1;
  // Nothing was there, and the socket was not touched since: only then its descriptor tells.
  bool empty_ = false;
  int received_ = 0;  // since the last look at the descriptors
  std::vector<Answer> outbox_;
  size_t waiting_bytes_ = 0;
  // What is left of this second's time for peers that read more slowly than they ask.
  double patience_s_ = 0;
  double patience_at_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_TRANSPORT_H_
