#ifndef SLUICE_RUNTIME_SERVICE_TRANSPORT_H_
#define SLUICE_RUNTIME_SERVICE_TRANSPORT_H_
// The socket: who may connect, one message in, one answer out.
#include <memory>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
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
  static constexpr char kInside[] = "inproc://sluice-http";  // the server's own HTTP side

  // Binds the endpoints.
  static absl::StatusOr<std::unique_ptr<Transport>> Open(zmq::context_t& context,
                                                         const v1::ServerConfig& config);
  ~Transport();
  // Where it really listens: tcp ports of 0 are filled in.
  const std::vector<std::string>& endpoints() const { return endpoints_; }
  void* handle() { return router_.handle(); }
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
  // Whether it is of this process, whose word is taken for who asks: its sockets' identities begin
  // with a secret.
  bool IsInside(const Message& m) const { return absl::StartsWith(m.peer.identity, inside_); }
  const std::string& inside() const { return inside_; }
  // "" where there is none.
  static std::string PeerAddress(Message& m) { return Property(m.body, "Peer-Address"); }
  // Whether the key that a message came under is still on the list.
  bool Allows(const std::string& key) { return key.empty() || allow_list_->Holds(key); }
  // False: the peer has gone, or does not read.
  bool Send(const Peer& peer, const v1::Response& response);
  // Reads the allow-list where it changed.
  void Refresh() { allow_list_->Refresh(); }

 private:
  explicit Transport(zmq::context_t& context)
      : router_(context, zmq::socket_type::router), connections_(context) {}
  absl::Status Set(zmq::context_t& context, const v1::ServerConfig& config);
  absl::Status Bind(const v1::ServerConfig& config);
  static std::string Property(zmq::message_t& frame, const char* name);
  bool Begin(zmq::message_t& identity);

  std::unique_ptr<AllowList> allow_list_;
  zmq::socket_t router_;
  Connections connections_;
  bool encrypted_ = false;
  std::string inside_;
  std::vector<std::string> endpoints_;
  // What is left of this second's time for peers that read more slowly than they ask.
  double patience_s_ = 0;
  double patience_at_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_TRANSPORT_H_
